"""Changes of resolution: patches, and strided steps made of a convolution and a reshuffle of channels and pixels.

Shapes: B batch, C channels, F frames, H height, W width; (a, b, c) strides over time, height, width, P = a·b·c.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ltxgen.models.video_vae.config import Resample
from ltxgen.models.video_vae.convolution import Padding, VideoConv


class Downsample(nn.Module):
    """(B, C, F, H, W) -> (B, C·multiplier, F/a, H/b, W/c), plus the input averaged to the same shape.

    Halving time takes 2k + 1 frames to k + 1: the first frame stands alone, as in the whole causal encoder.
    """

    def __init__(self, channels: int, resample: Resample, padding: Padding) -> None:
        super().__init__()
        assert resample.residual, "every encoder block has the averaged skip path"
        self.stride = resample.stride
        self.out_channels = channels * resample.multiplier
        conv_channels = self.out_channels // math.prod(self.stride)
        self.conv = VideoConv(channels, conv_channels, padding)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride[0] == 2:
            x = torch.cat((x[:, :, :1], x), dim=2)
        skip = _space_to_depth(x, self.stride).unflatten(1, (self.out_channels, -1)).mean(dim=2)
        return _space_to_depth(self.conv(x), self.stride).add_(skip)


class Upsample(nn.Module):
    """(B, C, F, H, W) -> (B, C/multiplier, F·a, H·b, W·c), minus the first frame where time doubles (2F − 1).

    With `residual` (LTX-2) the input, reshuffled and repeated over channels, is added.
    """

    def __init__(self, channels: int, resample: Resample, padding: Padding) -> None:
        super().__init__()
        self.stride = resample.stride
        self.residual = resample.residual
        self.out_channels = channels // resample.multiplier
        conv_channels = self.out_channels * math.prod(self.stride)
        self.conv = VideoConv(channels, conv_channels, padding)

    def forward(self, x: Tensor) -> Tensor:
        out = self._expand(self.conv(x))
        if self.residual:
            skip = self._expand(x)
            # Viewed as (B, repeats, channels of skip, ...), so that the repeats are never written out.
            out.unflatten(1, (-1, skip.shape[1])).add_(skip.unsqueeze(1))
        return out

    def _expand(self, x: Tensor) -> Tensor:
        return _depth_to_space(x, self.stride)[:, :, self.stride[0] - 1 :]


def patchify(video: Tensor, size: int) -> Tensor:
    """(B, C, F, H·size, W·size) -> (B, C·size², F, H, W); of the new channels the sub-row runs fastest."""
    B, C, F, H, W = video.shape
    patches = video.reshape(B, C, F, H // size, size, W // size, size)
    return patches.permute(0, 1, 6, 4, 2, 3, 5).reshape(B, C * size * size, F, H // size, W // size)


def unpatchify(x: Tensor, size: int) -> Tensor:
    """The inverse of `patchify`."""
    B, C, F, H, W = x.shape
    patches = x.reshape(B, C // (size * size), size, size, F, H, W)
    return patches.permute(0, 1, 4, 5, 3, 6, 2).reshape(B, C // (size * size), F, H * size, W * size)


def _space_to_depth(x: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """(B, C, F·a, H·b, W·c) -> (B, C·a·b·c, F, H, W); of the new channels c runs fastest."""
    B, C, F, H, W = x.shape
    a, b, c = stride
    cells = x.reshape(B, C, F // a, a, H // b, b, W // c, c)
    return cells.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(B, C * a * b * c, F // a, H // b, W // c)


def _depth_to_space(x: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """The inverse of `_space_to_depth`."""
    B, C, F, H, W = x.shape
    a, b, c = stride
    cells = x.reshape(B, C // (a * b * c), a, b, c, F, H, W)
    return cells.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(B, C // (a * b * c), F * a, H * b, W * c)
