"""The generators: HiFi-GAN (Kong et al. 2020, arXiv 2010.05646) for LTX-2, its BigVGAN descendant for LTX-2.3.

Shapes: B batch, C channels, T mel frames, M mel bins, S samples (at whatever rate a stage has reached).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltxgen.models.vocoder.activation import AntiAliasedSnake
from ltxgen.models.vocoder.config import GeneratorConfig

# HiFi-GAN's slopes; the last activation has the default slope of its framework, there as here.
LEAKY_SLOPE = 0.1
LAST_LEAKY_SLOPE = 0.01


class Generator(nn.Module):
    """Stereo log-mel spectrogram to stereo sound.

    Agrees with the official `Vocoder` (ltx_core/model/audio_vae/vocoder.py).
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        stages = list(zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True))
        widths = [config.initial_channels // 2**stage for stage in range(len(stages) + 1)]
        self.conv_pre = nn.Conv1d(2 * config.mel_bins, widths[0], 7, padding=3)
        self.ups = nn.ModuleList(
            nn.ConvTranspose1d(wide, narrow, kernel, stride=rate, padding=(kernel - rate) // 2)
            for wide, narrow, (rate, kernel) in zip(widths, widths[1:], stages, strict=False)
        )
        resblock = SnakeBlock if config.activation == "snakebeta" else LeakyBlock
        # Flat in the checkpoint: all blocks of stage 0, then all of stage 1.
        self.resblocks = nn.ModuleList(
            resblock(width, kernel, dilations)
            for width in widths[1:]
            for kernel, dilations in zip(config.resblock_kernel_sizes, config.resblock_dilations, strict=True)
        )
        self.act_post = resblock.last_activation(widths[-1])
        self.before_upsample = resblock.before_upsample
        self.conv_post = nn.Conv1d(widths[-1], 2, 7, padding=3, bias=config.final_bias)

    @property
    def sampling_rate(self) -> int:
        """Of the sound that comes out, in Hz."""
        return self.config.sampling_rate

    def forward(self, log_mel: Tensor) -> Tensor:
        """(B, 2, T, M) -> (B, 2, S) with S = T times the product of the rates."""
        x = self.conv_pre(log_mel.transpose(2, 3).flatten(1, 2))
        blocks_per_stage = len(self.config.resblock_kernel_sizes)
        for stage, upsample in enumerate(self.ups):
            x = upsample(self.before_upsample(x))
            blocks = self.resblocks[stage * blocks_per_stage : (stage + 1) * blocks_per_stage]
            x = torch.stack([block(x) for block in blocks]).mean(dim=0)
        waveform = self.conv_post(self.act_post(x))
        match self.config.final_activation:
            case "tanh":
                return waveform.tanh()
            case "clamp":
                return waveform.clamp(-1, 1)
        return waveform
