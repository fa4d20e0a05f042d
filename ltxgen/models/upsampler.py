"""Latent upsamplers: more pixels or more frames before the second stage, without leaving latent space.

Shapes: B batch, C channels, F frames, H height, W width, all in latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Scales of the rational resampler, as pixel shuffle factor over blur stride.
RATIONAL_SCALES: dict[float, tuple[int, int]] = {0.75: (3, 4), 1.5: (3, 2), 2.0: (2, 1), 4.0: (4, 1)}
_BLUR_SIZE = 5


@dataclass(frozen=True)
class UpsamplerConfig:
    """Sizes of one upsampler; `spatial_scale` is (numerator, denominator), (1, 1) where only time is upsampled."""

    in_channels: int = 128
    mid_channels: int = 512
    num_blocks_per_stage: int = 4
    spatial_scale: tuple[int, int] = (2, 1)
    rational: bool = False
    temporal: bool = False

    @classmethod
    def from_metadata(cls, config: Mapping[str, Any]) -> Self:
        """Read the flat `config` of an upsampler file; absent keys take the defaults of the official reader.

        Raises ValueError naming each key whose value is not supported. The official code runs some of these
        combinations by ignoring a key (a scale without the rational resampler, say); here they are refused.
        """
        spatial, temporal = config.get("spatial_upsample", True), config.get("temporal_upsample", False)
        scale, rational = config.get("spatial_scale", 2.0), config.get("rational_resampler", False)
        problems = []
        if config.get("dims", 3) != 3:
            problems.append(f"dims = {config['dims']!r}: must be 3")
        if not spatial and not temporal:
            problems.append("spatial_upsample = False: must be true where temporal_upsample is not")
        if spatial and rational and temporal:
            problems.append("rational_resampler = True: must be false where temporal_upsample is true")
        if spatial and rational and scale not in RATIONAL_SCALES:
            problems.append(f"spatial_scale = {scale!r}: must be one of {', '.join(map(str, RATIONAL_SCALES))}")
        if spatial and not rational and scale != 2:
            problems.append(f"spatial_scale = {scale!r}: must be 2.0 where rational_resampler is not true")
        if problems:
            raise ValueError("\n".join(problems))
        return cls(
            in_channels=config.get("in_channels", 128),
            mid_channels=config.get("mid_channels", 512),
            num_blocks_per_stage=config.get("num_blocks_per_stage", 4),
            spatial_scale=RATIONAL_SCALES[scale] if spatial else (1, 1),
            rational=bool(spatial and rational),
            temporal=bool(temporal),
        )

    def output_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Latent frames, height and width after upsampling.

        Raises ValueError naming each side that the scale does not take to a whole number.
        """
        numerator, denominator = self.spatial_scale
        problems = [
            f"latent {name} = {length}: must be a multiple of {denominator} for a scale of {numerator}/{denominator}"
            for name, length in (("height", height), ("width", width))
            if length % denominator
        ]
        if problems:
            raise ValueError("\n".join(problems))
        frames = 2 * frames - 1 if self.temporal else frames
        return frames, height * numerator // denominator, width * numerator // denominator


class LatentUpsampler(nn.Module):
    """Un-normalised latents (B, C, F, H, W) to the shape that `output_shape` says.

    The group norms average over all frames and pixels, so a video can't be run in pieces.
    Agrees with the official `LatentUpsampler` (ltx_core/model/upsampler).
    """

    def __init__(self, config: UpsamplerConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.mid_channels
        self.initial_conv = nn.Conv3d(config.in_channels, channels, 3, padding=1)
        self.initial_norm = nn.GroupNorm(32, channels)
        self.res_blocks = nn.ModuleList(_ResBlock(channels) for _ in range(config.num_blocks_per_stage))
        self.upsampler = _resampler(config)
        self.post_upsample_res_blocks = nn.ModuleList(_ResBlock(channels) for _ in range(config.num_blocks_per_stage))
        self.final_conv = nn.Conv3d(channels, config.in_channels, 3, padding=1)

    def output_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """See `UpsamplerConfig.output_shape`."""
        return self.config.output_shape(frames, height, width)

    def forward(self, latents: Tensor) -> Tensor:
        expected = self.output_shape(*latents.shape[2:])
        x = F.silu(self.initial_norm(self.initial_conv(latents)), inplace=True)
        for block in self.res_blocks:
            x = block(x)
        x = self.upsampler(x)
        for block in self.post_upsample_res_blocks:
            x = block(x)
        upsampled = self.final_conv(x)
        assert upsampled.shape[2:] == expected, f"{tuple(upsampled.shape)} is not {expected}"
        return upsampled


class _ResBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm1 = nn.GroupNorm(32, channels)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(32, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.norm1(self.conv1(x)), inplace=True)
        return F.silu(self.norm2(self.conv2(y)).add_(x), inplace=True)


class _SpatialShuffle(nn.Sequential):
    """Twice the height and width, frame by frame."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.Conv2d(channels, 4 * channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return _unfold_frames(F.pixel_shuffle(self[0](_fold_frames(x)), 2), x.shape[0])


class _TimeShuffle(nn.Sequential):
    """F frames to 2F − 1 (the first of the doubled frames is dropped), with or without twice the height and width."""

    def __init__(self, channels: int, space: int) -> None:
        super().__init__(nn.Conv3d(channels, 2 * space * space * channels, 3, padding=1))
        self.space = space

    def forward(self, x: Tensor) -> Tensor:
        B, C, F_, H, W = x.shape
        s = self.space
        cells = self[0](x).view(B, C, 2, s, s, F_, H, W)
        return cells.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(B, C, 2 * F_, s * H, s * W)[:, :, 1:]


class _BlurDown(nn.Module):
    """Binomial blur of each channel, keeping every `stride`-th pixel. The kernel comes from the file."""

    kernel: Tensor

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.register_buffer("kernel", torch.empty(1, 1, _BLUR_SIZE, _BLUR_SIZE))

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            return x
        C = x.shape[1]
        kernel = self.kernel.expand(C, -1, -1, -1)
        return F.conv2d(x, kernel, stride=self.stride, padding=_BLUR_SIZE // 2, groups=C)


class _RationalResampler(nn.Module):
    """Height and width times numerator / denominator, frame by frame: pixel shuffle up, blur down."""

    def __init__(self, channels: int, scale: tuple[int, int]) -> None:
        super().__init__()
        self.numerator, denominator = scale
        self.conv = nn.Conv2d(channels, self.numerator**2 * channels, 3, padding=1)
        self.blur_down = _BlurDown(denominator)

    def forward(self, x: Tensor) -> Tensor:
        larger = F.pixel_shuffle(self.conv(_fold_frames(x)), self.numerator)
        return _unfold_frames(self.blur_down(larger), x.shape[0])


def _resampler(config: UpsamplerConfig) -> nn.Module:
    if config.rational:
        return _RationalResampler(config.mid_channels, config.spatial_scale)
    if config.temporal:
        return _TimeShuffle(config.mid_channels, space=config.spatial_scale[0])
    return _SpatialShuffle(config.mid_channels)


def _fold_frames(x: Tensor) -> Tensor:
    """(B, C, F, H, W) -> (B·F, C, H, W)."""
    return x.transpose(1, 2).flatten(0, 1)


def _unfold_frames(x: Tensor, batch: int) -> Tensor:
    """(B·F, C, H, W) -> (B, C, F, H, W)."""
    return x.unflatten(0, (batch, -1)).transpose(1, 2)
