"""What encoder and decoder of the audio VAE are made of.

Shapes: B batch, C channels, T time (mel or latent frames), M mel bins. Everything is causal along T.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# The video VAE has 1e-8 here.
PIXEL_NORM_EPS = 1e-6


class CausalConv2d(nn.Module):
    """A square convolution of stride 1, (B, C, T, M) -> (B, C', T, M): zeros before the first frame, none after."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.frames_before = kernel_size - 1
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=(0, kernel_size // 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 0, self.frames_before, 0)))


class ResnetBlock(nn.Module):
    """x + conv2(SiLU(norm(conv1(SiLU(norm(x)))))), with a 1x1 convolution on x where the width changes."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = CausalConv2d(in_channels, out_channels)
        self.conv2 = CausalConv2d(out_channels, out_channels)
        self.nin_shortcut = CausalConv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv2(norm_silu(self.conv1(norm_silu(x))))
        return residual + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class MidBlock(nn.Module):
    """The two residual blocks at the narrowest point, shape kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.block_1(x))


class Downsample(nn.Module):
    """A convolution of stride 2: (B, C, T, M) -> (B, C, ceil(T/2), floor(M/2))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 2, 0)))


class Upsample(nn.Module):
    """Nearest neighbour and a convolution: (B, C, T, M) -> (B, C, 2T − 1, 2M)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = CausalConv2d(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        # The first latent frame stands for one frame: drop the first of its two, after the convolution has seen both.
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))[:, :, 1:]


class PerChannelStatistics(nn.Module):
    """Normalise latents (B, C, T, M), and back, per channel and mel bin. Both values come from the checkpoint."""

    def __init__(self, channels: int, mel_bins: int) -> None:
        super().__init__()
        self.latent_shape = (channels, 1, mel_bins)
        # The official names hold hyphens, so they can't be written as attributes. The order is channel, then bin.
        self.register_buffer("std-of-means", torch.empty(channels * mel_bins))
        self.register_buffer("mean-of-means", torch.empty(channels * mel_bins))

    def normalize(self, latents: Tensor) -> Tensor:
        """(latents − mean) / std, in the dtype of `latents`."""
        return (latents - self._of("mean-of-means", latents)) / self._of("std-of-means", latents)

    def denormalize(self, latents: Tensor) -> Tensor:
        """latents · std + mean, in the dtype of `latents`."""
        return latents * self._of("std-of-means", latents) + self._of("mean-of-means", latents)

    def _of(self, name: str, latents: Tensor) -> Tensor:
        return self.get_buffer(name).to(latents).view(self.latent_shape)


def norm_silu(x: Tensor) -> Tensor:
    """SiLU(x / sqrt(mean over channels of x² + 1e-6)), rounded to the dtype of `x` at each step, as officially."""
    return F.silu(x / (x.square().mean(dim=1, keepdim=True) + PIXEL_NORM_EPS).sqrt())
