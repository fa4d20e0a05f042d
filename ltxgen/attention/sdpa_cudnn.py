"""cuDNN's fused attention, through torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from ltxgen.attention.protocol import HALF, Needs, blank_unseeing
from ltxgen.attention.sdpa import SdpaKernel
from ltxgen.registry import register


@register("attention", "sdpa_cudnn")
@dataclass(frozen=True)
class SdpaCudnn(SdpaKernel):
    """Its limits are those of torch's `can_use_cudnn_attention` (sdp_utils.cpp); it takes no single key."""

    needs = Needs(cuda=True, first=(8, 0), last=(12, 1), dtypes=HALF)
    head_dims = range(8, 129, 8)
    kernel = SDPBackend.CUDNN_ATTENTION

    def with_lse(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        bias = None if mask is None else mask.reshape((1,) * (4 - mask.dim()) + mask.shape)
        attention = torch.ops.aten._scaled_dot_product_cudnn_attention
        out, lse, *_ = attention(q, k, v, bias, compute_log_sumexp=True)
        return blank_unseeing(out, lse.reshape(q.shape[:3]), mask)  # (B,H,Tq,1) in torch 2.13
