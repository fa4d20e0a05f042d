"""Timestep embedding and adaptive modulation.

B batch, T tokens (1 where all tokens of a sample share a timestep), K rows, C width
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SINUSOID_DIM = 256


def sinusoid(timesteps: Tensor) -> Tensor:
    """(...) scaled timesteps to (..., 256) in fp32: the cosine half first, then the sine half."""
    half = SINUSOID_DIM // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps.float()[..., None] * torch.exp(-math.log(10000) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def modulate(normed: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return normed * (1 + scale) + shift


def modulation_rows(table: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
    """A block's learned `table` (K, C) plus the timestep's `rows` (B, T, K, C), as K tensors (B, T, C).

    Tables are stored in fp32 and added in the activation dtype.
    """
    return (table.to(rows.dtype) + rows).unbind(dim=2)


class TimestepEmbedder(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.linear_1 = nn.Linear(SINUSOID_DIM, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, timesteps: Tensor) -> Tensor:
        embedded = sinusoid(timesteps).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(embedded)))


class AdaLayerNormSingle(nn.Module):
    """Scaled timesteps to modulation rows, computed once and shared by all blocks (PixArt-α's adaLN-single)."""

    def __init__(self, width: int, num_rows: int):
        super().__init__()
        self.num_rows = num_rows
        self.emb = nn.ModuleDict({"timestep_embedder": TimestepEmbedder(width)})
        self.linear = nn.Linear(width, num_rows * width)

    def forward(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) scaled timesteps to rows (B, T, K, C) and the embedded timestep (B, T, C) the output head uses."""
        embedded = self.emb["timestep_embedder"](timesteps)
        return self.linear(F.silu(embedded)).unflatten(-1, (self.num_rows, -1)), embedded
