"""FlashAttention 4, `flash_attn.cute`: kernels in CuTe DSL for Hopper and Blackwell, compiled at the first call."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ltxgen.attention.flash2 import swap
from ltxgen.attention.protocol import HALF, LseBackend, Needs, Package
from ltxgen.registry import register


@register("attention", "flash4")
@dataclass(frozen=True)
class Flash4(LseBackend):
    """`flash_attn_func`, which returns (out, lse) whether or not the lse was asked for."""

    needs = Needs(
        cuda=True,
        first=(9, 0),
        last=(11, 9),
        dtypes=HALF,
        package=Package("flash_attn.cute", "pip install --pre flash-attn-4"),
    )
    takes_masks = False
    head_dims = range(8, 129, 8)  # Hopper takes up to 256, Blackwell not

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        out, _ = self._run(q, k, v, mask, return_lse=False)
        return out

    def with_lse(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._run(q, k, v, mask, return_lse=True)

    def _run(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, return_lse: bool) -> tuple[Tensor, Tensor]:
        assert mask is None, "flash4 was given a mask"
        from flash_attn.cute import flash_attn_func

        out, lse = flash_attn_func(*map(swap, (q, k, v)), return_lse=return_lse)
        return swap(out), lse
