"""SnakeBeta without aliasing: the activation of BigVGAN (Lee et al. 2023, arXiv 2206.04658).

Shapes: B batch, C channels, S samples.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FILTER_TAPS = 12
SNAKE_EPS = 1e-9


class AntiAliasedSnake(nn.Module):
    """Twice the samples, SnakeBeta, half the samples, (B, C, S) kept: the harmonics it adds don't fold back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.act = SnakeBeta(channels)
        self.upsample = Upsample2x()
        self.downsample = Downsample2x()

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(self.act(self.upsample(x)))


class SnakeBeta(nn.Module):
    """x + sin²(x·e^α) / e^β with α, β per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(channels))
        self.beta = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        frequency = self.alpha.exp()[:, None]
        strength = (self.beta.exp() + SNAKE_EPS).reciprocal()[:, None]
        return x + strength * torch.sin(x * frequency).square()


class Upsample2x(nn.Module):
    """(B, C, S) -> (B, C, 2S) by the low-pass filter of the checkpoint."""

    filter: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filter", torch.empty(1, 1, FILTER_TAPS))

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        edge = FILTER_TAPS // 2 - 1
        # Each input sample is followed by a zero, which halves the level: hence the filter's factor 2.
        weight = (2 * self.filter).expand(channels, -1, -1)
        padded = F.pad(x, (edge, edge), mode="replicate")
        # The padding's share of the output and half a filter at each end are cut off again.
        return F.conv_transpose1d(padded, weight, stride=2, padding=3 * edge, groups=channels)


class Downsample2x(nn.Module):
    """(B, C, 2S) -> (B, C, S) by the low-pass filter of the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.lowpass = LowPass()

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        padded = F.pad(x, (FILTER_TAPS // 2 - 1, FILTER_TAPS // 2), mode="replicate")
        return F.conv1d(padded, self.lowpass.filter.expand(channels, -1, -1), stride=2, groups=channels)


class LowPass(nn.Module):
    """Holds the filter under its official name."""

    filter: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filter", torch.empty(1, 1, FILTER_TAPS))
