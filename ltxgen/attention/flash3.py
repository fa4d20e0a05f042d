"""FlashAttention 3 for Hopper, `flash_attn_interface` (Shah et al. 2024, arXiv:2407.08608)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor

from ltxgen.attention.flash2 import swap
from ltxgen.attention.protocol import HALF, LseBackend, Needs, Package
from ltxgen.registry import register


@register("attention", "flash3")
@dataclass(frozen=True)
class Flash3(LseBackend):
    """`flash_attn_func` of the package that is built from the `hopper` folder of flash-attention."""

    needs = Needs(
        cuda=True,
        first=(9, 0),
        last=(9, 0),
        dtypes=HALF,
        package=Package("flash_attn_interface", "built from the hopper folder of github.com/Dao-AILab/flash-attention"),
    )
    takes_masks = False
    head_dims = range(8, 257, 8)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        assert mask is None, "flash3 was given a mask"
        from flash_attn_interface import flash_attn_func

        result = flash_attn_func(*map(swap, (q, k, v)))
        return swap(result[0] if isinstance(result, tuple) else result)

    def with_lse(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        assert mask is None, "flash3 was given a mask"
        from flash_attn_interface import flash_attn_func

        out, lse, *_ = flash_attn_func(*map(swap, (q, k, v)), **_asking_for_lse(flash_attn_func))
        return swap(out), lse


@cache
def _asking_for_lse(attention: Callable[..., Any]) -> dict[str, Any]:
    # Older builds return (out, lse) always and have no such argument.
    return {"return_attn_probs": True} if "return_attn_probs" in inspect.signature(attention).parameters else {}
