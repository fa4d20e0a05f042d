"""Timestep embedding and adaptive modulation.

B batch, T tokens, L timesteps, K rows, C width
"""

import math
from typing import NamedTuple

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


class Modulation(NamedTuple):
    """What timesteps make of the modulated layers.

    rows      (B, L, K, C): K rows for each of L timesteps
    of_token  (B, T): whose of the L are each token's; None where each has its own (L = T) or all share one (L = 1)
    """

    rows: Tensor
    of_token: Tensor | None = None

    def part(self, rows: slice) -> "Modulation":
        return Modulation(self.rows[:, :, rows], self.of_token)


def modulation_rows(table: Tensor, modulation: Modulation) -> tuple[Tensor, ...]:
    """A block's learned `table` (K, C) plus the timesteps' rows, as K tensors (B, T or 1, C).

    Tables are stored in fp32 and added in the activation dtype, before rows go to tokens: there are more of those.
    """
    rows = (table.to(modulation.rows.dtype) + modulation.rows).unbind(dim=2)
    if modulation.of_token is None:
        return rows
    index = modulation.of_token[..., None]
    return tuple(torch.take_along_dim(row, index, dim=1) for row in rows)


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
        """(B, L) scaled timesteps to rows (B, L, K, C) and the embedded timestep (B, L, C) the output head uses."""
        embedded = self.emb["timestep_embedder"](timesteps)
        return self.linear(F.silu(embedded)).unflatten(-1, (self.num_rows, -1)), embedded
