"""The generators: HiFi-GAN (Kong et al. 2020, arXiv 2010.05646) for LTX-2, its BigVGAN descendant for LTX-2.3.

Shapes: B batch, C channels, T mel frames, M mel bins, S samples (at whatever rate a stage has reached).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from ltxgen.models.vocoder.activation import AntiAliasedSnake
from ltxgen.models.vocoder.config import GeneratorConfig

# HiFi-GAN's slope, and the one that stands before its last convolution.
LEAKY_SLOPE = 0.1
LAST_LEAKY_SLOPE = 0.01


class Generator(nn.Module):
    """Stereo log-mel spectrogram to stereo sound.

    Agrees with the official `Vocoder` (ltx_core/model/audio_vae/vocoder.py).
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        snake = config.activation == "snakebeta"
        widths = [config.initial_channels // 2**stage for stage in range(len(config.upsample_rates) + 1)]
        self.conv_pre = nn.Conv1d(2 * config.mel_bins, widths[0], 7, padding=3)
        self.act_up = nn.Identity() if snake else nn.LeakyReLU(LEAKY_SLOPE)
        self.ups = nn.ModuleList(
            nn.ConvTranspose1d(wide, narrow, kernel, stride=rate, padding=(kernel - rate) // 2)
            for (wide, narrow), rate, kernel in zip(
                pairwise(widths), config.upsample_rates, config.upsample_kernel_sizes, strict=True
            )
        )
        # Flat in the checkpoint: all blocks of the first stage, then all of the second.
        self.resblocks = nn.ModuleList(
            ResBlock(width, kernel, dilations, snake=snake)
            for width in widths[1:]
            for kernel, dilations in zip(config.resblock_kernel_sizes, config.resblock_dilations, strict=True)
        )
        self.act_post = AntiAliasedSnake(widths[-1]) if snake else nn.LeakyReLU(LAST_LEAKY_SLOPE)
        self.conv_post = nn.Conv1d(widths[-1], 2, 7, padding=3, bias=config.final_bias)

    @property
    def sampling_rate(self) -> int:
        """Of the sound that comes out, in Hz."""
        return self.config.sampling_rate

    def forward(self, log_mel: Tensor) -> Tensor:
        """(B, 2, T, M) -> (B, 2, S), S = T · samples_per_frame."""
        x = self.conv_pre(log_mel.transpose(2, 3).flatten(1, 2))
        per_stage = len(self.config.resblock_kernel_sizes)
        for stage, upsample in enumerate(self.ups):
            x = upsample(self.act_up(x))
            blocks = self.resblocks[stage * per_stage : (stage + 1) * per_stage]
            x = torch.stack([block(x) for block in blocks]).mean(dim=0)
        waveform = self.conv_post(self.act_post(x))
        match self.config.final_activation:
            case "tanh":
                return waveform.tanh()
            case "clamp":
                return waveform.clamp(-1, 1)
            case "none":
                return waveform


class ResBlock(nn.Module):
    """Pairs of convolutions, the first of each dilated, each pair added to its input; (B, C, S) kept."""

    def __init__(self, channels: int, kernel_size: int, dilations: tuple[int, ...], *, snake: bool) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(_same_conv(channels, kernel_size, dilation) for dilation in dilations)
        self.convs2 = nn.ModuleList(_same_conv(channels, kernel_size, 1) for _ in dilations)
        self.acts1, self.acts2 = (
            nn.ModuleList(AntiAliasedSnake(channels) if snake else nn.LeakyReLU(LEAKY_SLOPE) for _ in dilations)
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        for act1, conv1, act2, conv2 in zip(self.acts1, self.convs1, self.acts2, self.convs2, strict=True):
            x = x + conv2(act2(conv1(act1(x))))
        return x


def _same_conv(channels: int, kernel_size: int, dilation: int) -> nn.Conv1d:
    return nn.Conv1d(channels, channels, kernel_size, padding=dilation * (kernel_size // 2), dilation=dilation)
