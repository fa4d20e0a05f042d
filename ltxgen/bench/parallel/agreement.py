"""How far a layout's result is from one GPU's, and how far one GPU is from itself when it sums in another order."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ltxgen.attention.protocol import DeviceFacts, RoleSpec, backend
from ltxgen.diffusion.pair import Pair
from ltxgen.models.transformer import AttentionFunction, Transformer, batch_limit
from ltxgen.models.transformer.attention import Attention
from ltxgen.recipe.plan import Plan
from ltxgen.stage.denoise import Denoise

_EXACT = ("sdpa_flash", "sdpa_efficient", "reference")


@contextmanager
def other_batching(transformer: Transformer, stage: Denoise) -> Iterator[str]:
    """Inside the block the passes of a step run as one batch instead of one by one, or the other way round; yields the
    override that does so."""
    limit = transformer.batched_tokens
    batched = stage.video_grid.num_tokens <= batch_limit(stage.num_passes, limit)
    transformer.batched_tokens = 0 if batched else sys.maxsize
    try:
        yield f"runtime.batch_passes={'never' if batched else 'always'}"
    finally:
        transformer.batched_tokens = limit


@contextmanager
def other_kernel(transformer: Transformer, plan: Plan) -> Iterator[str]:
    """Inside the block attention without a mask has another exact kernel; yields the override that does so."""
    modules = [module for module in transformer.modules() if isinstance(module, Attention)]
    usual = [module.attend for module in modules]
    kind = _other_attention(plan)
    for module in modules:
        module.attend = _Unmasked(backend(kind), module.attend)
    try:
        yield f"attention={kind}"
    finally:
        for module, attend in zip(modules, usual, strict=True):
            module.attend = attend


def _other_attention(plan: Plan) -> str:
    facts, usual = DeviceFacts.of(plan.device), plan.backends["video_self"][0]
    role = RoleSpec("video_self")
    return next(
        kind
        for kind in _EXACT
        if kind != usual and backend(kind).available(facts, plan.dtype) is None and backend(kind).supports(role) is None
    )


@dataclass(frozen=True)
class _Unmasked:
    """`other` for calls without a mask."""

    other: AttentionFunction
    usual: AttentionFunction

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return (self.other if mask is None else self.usual)(q, k, v, mask)


def relative_l2(ours: Pair[Tensor], theirs: Pair[Tensor]) -> Mapping[str, float]:
    """|ours - theirs| / |theirs| by modality."""

    def distance(one: Tensor, other: Tensor) -> float:
        return ((one.double() - other.double()).norm() / other.double().norm()).item()

    return vars(ours.map(distance, theirs))


def psnr(ours: Tensor, theirs: Tensor) -> float | None:
    """Of uint8 frames (F,H,W,3), in dB; None for equal ones."""
    squared = sum(
        (one.float() - other.float()).square().sum(dtype=torch.float64).item()
        for one, other in zip(ours.split(8), theirs.split(8), strict=True)
    )
    return 10 * math.log10(255**2 * ours.numel() / squared) if squared else None
