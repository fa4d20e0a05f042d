"""From the decoder's values to 8-bit pixels, and from RGB pixels to the planes of a BT.709 video and back.

F frames, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

# BT.709 rows for R, G, B in ten-thousandths. Whole numbers keep every weighted sum of 8-bit values (and of four of
# them) below 2**24, so float32 holds it exactly and grey has no colour error that truncation would turn into 127.
_LUMA = (2126, 7152, 722)
_BLUE_DIFFERENCE = (-1146, -3854, 5000)
_RED_DIFFERENCE = (5000, -4542, -458)
_UNIT = 255 * 10_000
_FRAMES_AT_ONCE = 8  # fp32 copies are made of so many frames and not of the whole video


@dataclass(frozen=True)
class YuvMatrix:
    """Luma weights of red and blue that define a YUV colour space, and whether it uses the limited range."""

    red: float
    blue: float
    limited: bool = True


BT709 = YuvMatrix(0.2126, 0.0722)
BT601 = YuvMatrix(0.299, 0.114)


def to_uint8(video: Tensor) -> Tensor:
    """Decoded video `(C, F, H, W)` or `(1, C, F, H, W)` in [-1, 1] as frames `(F, H, W, C)` uint8, on its device.

    (x + 1) / 2, clamped to [0, 1], times 255, truncated (as the official code does), in float32 whatever the decoder's
    dtype. Raises ValueError when a value is NaN or infinite: a clamp would hide it in a black or white frame.
    """
    if video.ndim == 5:
        assert video.shape[0] == 1, "one video at a time"
        video = video[0]
    C, F, H, W = video.shape
    pixels = torch.empty(F, H, W, C, dtype=torch.uint8, device=video.device)
    finite = torch.empty(F, dtype=torch.bool, device=video.device)
    for start in range(0, F, _FRAMES_AT_ONCE):
        span = slice(start, start + _FRAMES_AT_ONCE)
        finite[span] = torch.isfinite(video[:, span]).transpose(0, 1).flatten(1).all(dim=1)
        unit = video[:, span].to(torch.float32, copy=True).add_(1).div_(2).clamp_(0, 1)
        pixels[span] = unit.mul_(255).permute(1, 2, 3, 0)  # truncated
    if not bool(finite.all()):
        bad = (~finite).nonzero().flatten().tolist()
        raise ValueError(
            f"the decoded video holds NaN or infinite values in {len(bad)} of {len(finite)} frames of this part "
            f"(first: {bad[0]}); nothing was written"
        )
    return pixels


def rgb_to_yuv420(frame: Tensor) -> Tensor:
    """One RGB frame `(H, W, 3)` uint8 as BT.709 limited-range planes `(H * 3 / 2, W)` uint8 (Y, then U, then V), on its
    device.

    Y = 219 y + 16, U and V = 224 c + 128 of the 2x2 mean, truncated. Sums are exact and the last step is float64, so
    the result equals integer arithmetic for every input.
    """
    H, W, _ = frame.shape
    assert H % 2 == W % 2 == 0, "4:2:0 needs even sizes"
    rgb = [frame[..., channel].to(torch.float32) for channel in range(3)]
    quads = [avg_pool2d(plane[None, None], 2, divisor_override=1)[0, 0] for plane in rgb]  # sums of 2x2
    luma = _weighted(rgb, _LUMA, 219 / _UNIT, 16)
    blue = _weighted(quads, _BLUE_DIFFERENCE, 224 / (4 * _UNIT), 128)
    red = _weighted(quads, _RED_DIFFERENCE, 224 / (4 * _UNIT), 128)
    return torch.cat([luma.view(-1), blue.view(-1), red.view(-1)]).view(H * 3 // 2, W)


def yuv420_to_rgb(planes: Tensor, matrix: YuvMatrix) -> Tensor:
    """Planes `(H * 3 / 2, W)` uint8 as an RGB frame `(H, W, 3)` uint8, rounded; chroma is repeated over 2x2 pixels."""
    H, W = planes.shape[0] * 2 // 3, planes.shape[1]
    values = planes.reshape(-1).to(torch.float32)
    luma, blue, red = values.split([H * W, H * W // 4, H * W // 4])
    blue, red = (
        half.view(H // 2, W // 2).repeat_interleave(2, dim=0).repeat_interleave(2, dim=1) for half in (blue, red)
    )
    luma_levels, chroma_levels, black = (219, 224, 16) if matrix.limited else (255, 255, 0)
    y = (luma.view(H, W) - black) / luma_levels
    r = y + (red - 128) / chroma_levels * (2 * (1 - matrix.red))
    b = y + (blue - 128) / chroma_levels * (2 * (1 - matrix.blue))
    g = (y - matrix.red * r - matrix.blue * b) / (1 - matrix.red - matrix.blue)
    return torch.stack([r, g, b], dim=-1).mul_(255).round_().clamp_(0, 255).to(torch.uint8)


def _weighted(planes: list[Tensor], weights: tuple[int, int, int], scale: float, offset: int) -> Tensor:
    # Elementwise, not a matrix product: TF32 or bf16 matmul modes would round the sums.
    total = planes[0] * weights[0]
    for plane, weight in zip(planes[1:], weights[1:], strict=True):
        total.add_(plane, alpha=weight)
    return total.to(torch.float64).mul_(scale).add_(offset).to(torch.uint8)
