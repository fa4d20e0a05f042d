"""Ulysses: an all-to-all turns shards of the sequence into shards of the heads, and back (arXiv 2309.14509).

B batch, H heads, Tq and Tk tokens of one shard, D head dim, U ranks of the axis
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ltxgen.parallel.axes import Axis

Inner = Callable[[Tensor, Tensor, Tensor], Tensor]
"""q (B, H/U, U·Tq, D), k and v (B, H/U, U·Tk, D) to (B, H/U, U·Tq, D)."""


def ulysses_attention(q: Tensor, k: Tensor, v: Tensor, axis: Axis, attend: Inner) -> Tensor:
    """q (B, H, Tq, D), k and v (B, H, Tk, D) of this shard to (B, H, Tq, D); H is a multiple of the axis."""
    if axis.size == 1:
        return attend(q, k, v)
    assert q.shape[1] % axis.size == 0, f"{q.shape[1]} heads on {axis.size} ranks"
    return _tokens_back(attend(*_heads_of_all_tokens((q, k, v), axis)), axis)


def _heads_of_all_tokens(tensors: tuple[Tensor, ...], axis: Axis) -> list[Tensor]:
    """(B, H, T, D) each to (B, H/U, U·T, D), in one exchange; the lengths T may differ."""
    by_head = [x.unflatten(1, (axis.size, -1)).movedim(1, 0) for x in tensors]  # (U, B, H/U, T, D)
    arrived = axis.all_to_all(torch.cat(by_head, dim=3))
    parts = arrived.split([x.shape[2] for x in tensors], dim=3)
    return [part.movedim(0, 2).flatten(2, 3) for part in parts]


def _tokens_back(out: Tensor, axis: Axis) -> Tensor:
    """(B, H/U, U·T, D) to (B, H, T, D)."""
    by_shard = out.unflatten(2, (axis.size, -1)).movedim(2, 0)  # (U, B, H/U, T, D)
    return axis.all_to_all(by_shard).movedim(0, 1).flatten(1, 2)
