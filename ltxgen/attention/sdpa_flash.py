"""torch's own build of FlashAttention 2."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.attention import SDPBackend

from ltxgen.attention.protocol import HALF, Needs
from ltxgen.attention.sdpa import SdpaKernel, flash_with_lse
from ltxgen.registry import register


@register("attention", "sdpa_flash")
@dataclass(frozen=True)
class SdpaFlash(SdpaKernel):
    """Its limits are those of torch's `can_use_flash_attention` (sdp_utils.cpp)."""

    needs = Needs(cuda=True, first=(8, 0), last=(12, 1), dtypes=HALF)
    takes_masks = False
    head_dims = range(8, 257, 8)
    kernel = SDPBackend.FLASH_ATTENTION

    def with_lse(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        assert mask is None, "sdpa_flash was given a mask"
        return flash_with_lse(q, k, v)
