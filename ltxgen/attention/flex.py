"""torch's flex_attention: the mask is a score modification, compiled into one Triton kernel."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, flex_attention

from ltxgen.attention.protocol import DeviceFacts, LseBackend, Needs, Package, blank_unseeing
from ltxgen.registry import register

NUM_SHAPES = 64


@register("attention", "flex")
@dataclass(frozen=True)
class Flex(LseBackend):
    """Compiled for each new shape on a GPU; on the CPU the unfused form, which needs no compiler."""

    needs = Needs(first=(7, 0), package=Package("triton", "it comes with torch's CUDA builds"))
    head_dims = range(16, 257)

    def available(self, device: DeviceFacts, dtype: torch.dtype, *, importing: bool = True) -> str | None:
        return super().available(device, dtype, importing=importing) if device.type == "cuda" else None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        out, _ = self._run(q, k, v, mask)
        return out

    def with_lse(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        out, lse = self._run(q, k, v, mask)
        return blank_unseeing(out, lse, mask)

    def _run(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        if torch.compiler.is_compiling():  # it becomes part of what is compiled
            return _flex(q, k, v, mask)
        if q.device.type == "cuda":
            # Roles, stages and masks are many shapes, and past dynamo's limit of 8 the unfused form would run.
            with torch._dynamo.config.patch(recompile_limit=NUM_SHAPES):
                return _compiled()(q, k, v, mask)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
            return _flex(q, k, v, mask)


def _flex(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    bias = None if mask is None else mask.expand(*q.shape[:3], k.shape[2])

    def add_bias(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        assert bias is not None
        return score + bias[b, h, i, j]

    score_mod = None if bias is None else add_bias
    out, aux = flex_attention(q, k, v, score_mod=score_mod, return_aux=AuxRequest(lse=True))
    assert aux.lse is not None
    return out, aux.lse


@cache
def _compiled() -> Any:
    return torch.compile(_flex, fullgraph=True)
