"""Rotary position embedding over continuous positions (seconds, pixels).

B batch, T tokens, H heads, D head dim, N axes (time, height, width), K frequencies per axis
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

RopeType = Literal["split", "interleaved"]


class RotaryTable(NamedTuple):
    """Cosines and sines, each (B, T, H, D/2): every head has its own slice of the frequency range."""

    cos: Tensor
    sin: Tensor


def frequency_grid(num_frequencies: int, theta: float, *, double_precision: bool) -> Tensor:
    """π/2 · theta^(k/(K-1)) for k = 0..K-1, (K,) fp32 on the CPU.

    `double_precision` computes in float64 before rounding; fp32 moves the largest angles by up to 4e-3 rad.
    """
    dtype = torch.float64 if double_precision else torch.float32
    exponents = torch.linspace(0.0, 1.0, num_frequencies, dtype=dtype, device="cpu")
    return (theta**exponents * (math.pi / 2)).float()


def rotary_table(
    positions: Tensor,
    max_pos: tuple[float, ...],
    *,
    width: int,
    num_heads: int,
    theta: float,
    double_precision: bool,
    dtype: torch.dtype,
) -> RotaryTable:
    """Tables for tokens at the midpoints of `positions` (B, N, T, 2), bounds [start, end).

    Midpoint, fraction of `max_pos` and centring are computed in the dtype of `positions`, angles in fp32; the result
    has `dtype`. Angles are laid out frequency-major, axis-minor over width/2 entries; what is left over of width/2
    stands in front and does not rotate.
    """
    num_axes = len(max_pos)
    assert positions.shape[1] == num_axes, f"positions have {positions.shape[1]} axes, expected {num_axes}"
    midpoints = (positions[..., 0] + positions[..., 1]) / 2
    longest = torch.tensor(max_pos, dtype=positions.dtype, device=positions.device)
    centred = 2 * (midpoints.transpose(1, 2) / longest) - 1  # (B, T, N)

    frequencies = frequency_grid(width // (2 * num_axes), theta, double_precision=double_precision)
    angles = frequencies.to(positions.device)[:, None] * centred.float()[..., None, :]  # (B, T, K, N)
    angles = angles.flatten(-2)
    # An angle of zero is the pad: cos 1, sin 0.
    angles = torch.nn.functional.pad(angles, (width // 2 - angles.shape[-1], 0))
    angles = angles.unflatten(-1, (num_heads, -1)).contiguous()  # (B, T, H, D/2); kernels read it in this order
    return RotaryTable(angles.cos().to(dtype), angles.sin().to(dtype))


def rotate(x: Tensor, table: RotaryTable, rope_type: RopeType) -> Tensor:
    """Rotate x (B, T, H, D): pairs (i, i + D/2) for "split", (2i, 2i + 1) for "interleaved"."""
    cos, sin = table
    if rope_type == "split":
        first, second = x.chunk(2, dim=-1)
        # addcmul rounds once in bf16 where product and sum round twice; the official code does so for this layout only.
        turned = (torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(second * cos, first, sin))
        return torch.cat(turned, dim=-1)
    first, second = x[..., 0::2], x[..., 1::2]
    return torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1).flatten(-2)
