"""The audio decoder.

Shapes: B batch, T latent frames.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from ltxgen.models.audio_vae.blocks import (
    CausalConv2d,
    MidBlock,
    PerChannelStatistics,
    ResnetBlock,
    Upsample,
    norm_silu,
)
from ltxgen.models.audio_vae.config import AudioVAEConfig


class AudioDecoder(nn.Module):
    """Normalised latents to a log-mel spectrogram.

    Agrees with the official `AudioDecoder` (ltx_core/model/audio_vae).
    """

    def __init__(self, config: AudioVAEConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.base_channels * multiplier for multiplier in config.channel_multipliers]
        self.conv_in = CausalConv2d(config.latent_channels, widths[-1])
        self.mid = MidBlock(widths[-1])
        # Level 0 is the widest spectrogram and runs last.
        self.up = nn.ModuleList(
            UpLevel(wide, narrow, config.num_res_blocks + 1, upsample=level > 0)
            for level, (narrow, wide) in enumerate(pairwise([*widths, widths[-1]]))
        )
        self.conv_out = CausalConv2d(widths[0], config.audio_channels)
        self.per_channel_statistics = PerChannelStatistics(config.latent_channels, config.latent_mel_bins)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, 8, T, 16) -> (B, 2, 4T − 3, 64)."""
        x = self.mid(self.conv_in(self.per_channel_statistics.denormalize(latents)))
        for level in reversed(self.up):
            x = level(x)
        log_mel = self.conv_out(norm_silu(x))
        # Only bins can be missing, and only where their number is no multiple of the compression.
        assert log_mel.shape[2] == self.config.mel_frames(latents.shape[2])
        return F.pad(log_mel, (0, self.config.mel_bins - log_mel.shape[3]))


class UpLevel(nn.Module):
    """Residual blocks of one width, then twice the bins and twice the frames less one."""

    def __init__(self, in_channels: int, out_channels: int, num_res_blocks: int, *, upsample: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(in_channels if index == 0 else out_channels, out_channels) for index in range(num_res_blocks)
        )
        self.upsample = Upsample(out_channels) if upsample else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return x if self.upsample is None else self.upsample(x)
