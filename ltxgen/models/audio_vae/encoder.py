"""The audio encoder.

Shapes: B batch, T mel frames, M mel bins; T', M' the same in latents.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from ltxgen.models.audio_vae.blocks import (
    CausalConv2d,
    Downsample,
    MidBlock,
    PerChannelStatistics,
    ResnetBlock,
    norm_silu,
)
from ltxgen.models.audio_vae.config import AudioVAEConfig


class AudioEncoder(nn.Module):
    """Log-mel spectrogram to the mean of its latent distribution, normalised.

    Agrees with the official `AudioEncoder` (ltx_core/model/audio_vae).
    """

    def __init__(self, config: AudioVAEConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.base_channels * multiplier for multiplier in (1, *config.channel_multipliers)]
        last = len(config.channel_multipliers) - 1
        self.conv_in = CausalConv2d(config.audio_channels, config.base_channels)
        self.down = nn.ModuleList(
            DownLevel(narrow, wide, config.num_res_blocks, downsample=level < last)
            for level, (narrow, wide) in enumerate(pairwise(widths))
        )
        self.mid = MidBlock(widths[-1])
        # The second half, a log-variance, is never read.
        self.conv_out = CausalConv2d(widths[-1], 2 * config.latent_channels)
        self.per_channel_statistics = PerChannelStatistics(config.latent_channels, config.latent_mel_bins)

    def forward(self, log_mel: Tensor) -> Tensor:
        """(B, 2, T, 64) -> (B, 8, T', 16), T' = ceil(T / 4)."""
        x = self.conv_in(log_mel)
        for level in self.down:
            x = level(x)
        mean = self.conv_out(norm_silu(self.mid(x)))[:, : self.config.latent_channels]
        return self.per_channel_statistics.normalize(mean)


class DownLevel(nn.Module):
    """Residual blocks of one width, then half the frames and bins."""

    def __init__(self, in_channels: int, out_channels: int, num_res_blocks: int, *, downsample: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(in_channels if index == 0 else out_channels, out_channels) for index in range(num_res_blocks)
        )
        self.downsample = Downsample(out_channels) if downsample else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)
