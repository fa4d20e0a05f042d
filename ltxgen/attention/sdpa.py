"""torch's scaled_dot_product_attention, with torch choosing the kernel or with one kernel alone.

Shapes: B batch, H heads, Tq query tokens, Tk key tokens, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ltxgen.attention.protocol import HALF, LseBackend, blank_unseeing
from ltxgen.attention.reference import Reference
from ltxgen.registry import register

aten = torch.ops.aten


@register("attention", "sdpa")
@dataclass(frozen=True)
class Sdpa(LseBackend):
    """torch picks the kernel: flash, cuDNN, memory-efficient or plain, by device, dtype and mask."""

    traceable = True

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    def with_lse(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        if q.device.type == "cpu":
            out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=mask)
            return blank_unseeing(out, lse, mask)
        if q.dtype == torch.float64 or q.shape[-1] % 8:  # no fused kernel takes these
            return Reference().with_lse(q, k, v, mask)
        if mask is None and q.dtype in HALF and q.shape[-1] <= 256:
            return flash_with_lse(q, k, v)
        return efficient_with_lse(q, k, v, mask)


class SdpaKernel(LseBackend):
    """torch's attention held to one kernel: inputs that it doesn't take are an error, never another kernel."""

    traceable = True
    kernel: ClassVar[SDPBackend]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        assert mask is None or self.takes_masks, f"{self.kind} was given a mask"
        with sdpa_kernel(self.kernel):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def flash_with_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    out, lse, *_ = aten._scaled_dot_product_flash_attention(q, k, v)
    return out, lse[..., : q.shape[2]]


def efficient_with_lse(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    bias = None if mask is None else aligned_bias(mask, q, k)
    out, lse, *_ = aten._scaled_dot_product_efficient_attention(q, k, v, bias, compute_log_sumexp=True)
    return blank_unseeing(out, lse[..., : q.shape[2]], mask)  # the kernel rounds Tq up to 32


def aligned_bias(mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """`mask` as (B,H,Tq,Tk) in q's dtype with rows that start at multiples of 16 elements, as CUTLASS reads them."""
    num_keys = k.shape[2]
    rows = mask.to(q.dtype).expand(*mask.shape[:-1], num_keys)
    if num_keys % 16 or rows.stride(-1) != 1:
        rows = F.pad(rows, (0, -num_keys % 16))[..., :num_keys]
    return rows.expand(*q.shape[:3], num_keys)
