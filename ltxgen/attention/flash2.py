"""FlashAttention 2, the `flash_attn` package (Dao 2023, arXiv:2307.08691), and the layout all its versions share."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ltxgen.attention.protocol import HALF, LseBackend, Needs, Package
from ltxgen.registry import register


@register("attention", "flash2")
@dataclass(frozen=True)
class Flash2(LseBackend):
    """`flash_attn_func`; with `return_attn_probs` it also gives the log-sum-exp (and an empty matrix)."""

    # The file inside the package: FlashAttention 4 installs a `flash_attn` folder of its own.
    needs = Needs(
        cuda=True,
        first=(8, 0),
        dtypes=HALF,
        package=Package("flash_attn.flash_attn_interface", "pip install flash-attn --no-build-isolation"),
    )
    takes_masks = False
    head_dims = range(8, 257, 8)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        assert mask is None, "flash2 was given a mask"
        from flash_attn.flash_attn_interface import flash_attn_func

        return swap(flash_attn_func(*map(swap, (q, k, v))))

    def with_lse(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        assert mask is None, "flash2 was given a mask"
        from flash_attn.flash_attn_interface import flash_attn_func

        out, lse, _ = flash_attn_func(*map(swap, (q, k, v)), return_attn_probs=True)
        return swap(out), lse[..., : q.shape[2]]  # releases before 2.6 round Tq up


def swap(x: Tensor) -> Tensor:
    """(B,H,T,D) to (B,T,H,D), the layout of FlashAttention, and back."""
    return x.transpose(1, 2)
