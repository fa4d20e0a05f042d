"""Attention as the formula reads: the yardstick for every other backend."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ltxgen.attention.protocol import LseBackend, blank_unseeing
from ltxgen.registry import register


@register("attention", "reference")
@dataclass(frozen=True)
class Reference(LseBackend):
    """Plain operations in float32 or more; holds the whole (Tq, Tk) score matrix, so it is for small inputs."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        out, _ = _attention(q, k, v, mask)
        return out

    def with_lse(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        return blank_unseeing(*_attention(q, k, v, mask), mask)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(dtype) @ k.to(dtype).transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores + mask
    lse = scores.logsumexp(dim=-1)
    # A query that sees no key has an lse of -inf; its weights are zeros, not exp(-inf + inf).
    weights = (scores - lse.clamp(min=torch.finfo(dtype).min)[..., None]).exp()
    return (weights @ v.to(dtype)).to(q.dtype), lse
