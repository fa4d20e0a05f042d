"""Attention as the formula reads: the yardstick for every other backend."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ltxgen.attention.protocol import AttentionFunction
from ltxgen.registry import register


@register("attention", "reference")
@dataclass(frozen=True)
class ReferenceConfig:
    """Plain tensor operations; holds the whole (Tq, Tk) score matrix, so it is for small inputs."""

    def build(self) -> AttentionFunction:
        return attention


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores + mask
    return scores.softmax(dim=-1) @ v
