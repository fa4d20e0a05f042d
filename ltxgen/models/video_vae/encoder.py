"""The causal video encoder.

Shapes: B batch, F frames, H height, W width in pixels; F', H', W' in latents.
"""

from __future__ import annotations

from torch import Tensor, nn

from ltxgen.models.video_vae.config import ResStage, VideoVAEConfig
from ltxgen.models.video_vae.convolution import Padding, VideoConv
from ltxgen.models.video_vae.resnet import ResnetStage
from ltxgen.models.video_vae.sampling import Downsample, patchify
from ltxgen.models.video_vae.statistics import PerChannelStatistics


class VideoEncoder(nn.Module):
    """Video in [−1, 1] to the mean of its latent distribution, normalised. One image is one frame.

    Agrees with the official `VideoEncoder` (ltx_core/model/video_vae).
    """

    def __init__(self, config: VideoVAEConfig) -> None:
        super().__init__()
        self.config = config
        padding = Padding(causal=True, mode=config.encoder_padding)
        channels = config.encoder_base_channels
        self.conv_in = VideoConv(config.image_channels * config.patch_size**2, channels, padding)
        self.down_blocks = nn.ModuleList()
        for block in config.encoder_blocks:
            if isinstance(block, ResStage):
                self.down_blocks.append(ResnetStage(channels, block.num_layers, padding))
            else:
                self.down_blocks.append(Downsample(channels, block, padding))
                channels *= block.multiplier
        self.conv_out = VideoConv(channels, config.latent_channels + config.log_variance_channels, padding)
        self.per_channel_statistics = PerChannelStatistics(config.latent_channels)

    def forward(self, video: Tensor) -> Tensor:
        """(B, 3, F, H, W) -> (B, 128, F', H', W') with F = 8(F' − 1) + 1, H = 32·H', W = 32·W'.

        Raises ValueError where frames or pixels don't come out even; nothing is cut off.
        """
        self.config.latent_size(*video.shape[2:])  # refuses
        x = self.conv_in(patchify(video, self.config.patch_size))
        for block in self.down_blocks:
            x = block(x)
        mean = self.conv_out.after_norm(x)[:, : self.config.latent_channels]
        return self.per_channel_statistics.normalize(mean)
