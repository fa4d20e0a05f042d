"""torch's memory-efficient attention (CUTLASS): any mask, and float32 as well."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from ltxgen.attention.protocol import HALF, Needs
from ltxgen.attention.sdpa import SdpaKernel, efficient_with_lse
from ltxgen.registry import register


@register("attention", "sdpa_efficient")
@dataclass(frozen=True)
class SdpaEfficient(SdpaKernel):
    """Its limits are those of torch's `can_use_mem_efficient_attention` (sdp_utils.cpp)."""

    needs = Needs(cuda=True, first=(5, 0), last=(12, 1), dtypes=HALF | {torch.float32})
    head_dims = range(8, 1025, 8)
    kernel = SDPBackend.EFFICIENT_ATTENTION

    def with_lse(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        return efficient_with_lse(q, k, v, mask)
