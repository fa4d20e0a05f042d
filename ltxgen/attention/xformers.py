"""xFormers' memory_efficient_attention, which picks among CUTLASS and FlashAttention kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ltxgen.attention.flash2 import swap
from ltxgen.attention.protocol import HALF, AttentionBackend, Needs, Package
from ltxgen.attention.sdpa import aligned_bias
from ltxgen.registry import register


@register("attention", "xformers")
@dataclass(frozen=True)
class Xformers(AttentionBackend):
    """A mask is expanded to every head and query, without copies."""

    needs = Needs(
        cuda=True, first=(7, 0), dtypes=HALF | {torch.float32}, package=Package("xformers.ops", "pip install xformers")
    )
    head_dims = range(8, 257, 8)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        from xformers.ops import memory_efficient_attention

        bias = None if mask is None else aligned_bias(mask, q, k)
        return swap(memory_efficient_attention(*map(swap, (q, k, v)), attn_bias=bias))
