"""The video decoder.

Shapes: B batch, F' latent frames, H', W' latent height and width; F, H, W in pixels.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from ltxgen.models.video_vae.config import Resample, ResStage, VideoVAEConfig
from ltxgen.models.video_vae.convolution import Padding, VideoConv
from ltxgen.models.video_vae.resnet import ResnetStage
from ltxgen.models.video_vae.sampling import Upsample, unpatchify
from ltxgen.models.video_vae.statistics import PerChannelStatistics


class VideoDecoder(nn.Module):
    """Normalised latents to video, about [−1, 1], not clamped. Every frame depends on latents before and after it.

    Agrees with the official `VideoDecoder` (ltx_core/model/video_vae) without timestep conditioning and noise.
    """

    def __init__(self, config: VideoVAEConfig) -> None:
        super().__init__()
        self.config = config
        padding = Padding(causal=config.causal_decoder, mode=config.decoder_padding)
        multipliers = (block.multiplier for block in config.decoder_blocks if isinstance(block, Resample))
        channels = config.decoder_base_channels * math.prod(multipliers)
        self.per_channel_statistics = PerChannelStatistics(config.latent_channels)
        self.conv_in = VideoConv(config.latent_channels, channels, padding)
        self.up_blocks = nn.ModuleList()
        for block in config.decoder_blocks:
            if isinstance(block, ResStage):
                self.up_blocks.append(ResnetStage(channels, block.num_layers, padding))
            else:
                self.up_blocks.append(Upsample(channels, block, padding))
                channels //= block.multiplier
        self.conv_out = VideoConv(channels, config.image_channels * config.patch_size**2, padding)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, 128, F', H', W') -> (B, 3, 8(F' − 1) + 1, 32·H', 32·W')."""
        x = self.conv_in(self.per_channel_statistics.denormalize(latents))
        for block in self.up_blocks:
            x = block(x)
        return unpatchify(self.conv_out.after_norm(x), self.config.patch_size)
