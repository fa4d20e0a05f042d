"""torch's scaled_dot_product_attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ltxgen.attention.protocol import AttentionFunction
from ltxgen.registry import register


@register("attention", "sdpa")
@dataclass(frozen=True)
class SdpaConfig:
    """torch picks the kernel: flash, cuDNN, memory-efficient or plain, by device, dtype and mask."""

    def build(self) -> AttentionFunction:
        return sdpa


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
