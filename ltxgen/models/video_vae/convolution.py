"""The one convolution of the video VAE, and the norm that stands in front of most of them.

Shapes: B batch, C channels, F frames, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltxgen.models.video_vae.config import PaddingMode

PIXEL_NORM_EPS = 1e-8


@dataclass(frozen=True)
class Padding:
    """How one half of the VAE pads: frames by copies of the outer ones (`causal`: both in front), pixels by `mode`."""

    causal: bool
    mode: PaddingMode


class VideoConv(nn.Module):
    """A 3x3x3 convolution (B, C, F, H, W) -> (B, C', F, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, padding: Padding) -> None:
        super().__init__()
        self.causal = padding.causal
        self.conv = nn.Conv3d(in_channels, out_channels, 3, padding=(0, 1, 1), padding_mode=padding.mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self._pad_time(x))

    def after_norm(self, x: Tensor) -> Tensor:
        """The convolution of SiLU(PixelNorm(x)).

        Norm and SiLU act on each pixel alone, so they commute with copying frames: padding first makes the copy
        on which both can work in place. `x` is left as it is; autograd can't run backward through this.
        """
        padded = self._pad_time(x)
        return self.conv(F.silu(_pixel_norm_(padded), inplace=True))

    def _pad_time(self, x: Tensor) -> Tensor:
        first, last = x[:, :, :1], x[:, :, -1:]
        return torch.cat((first, first, x) if self.causal else (first, x, last), dim=2)


def _pixel_norm_(x: Tensor) -> Tensor:
    """x / sqrt(mean over channels of x² + eps), in place; sums run in fp32 whatever the dtype of `x`."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    return x.mul_(norm.square_().div_(x.shape[1]).add_(PIXEL_NORM_EPS).rsqrt_())
