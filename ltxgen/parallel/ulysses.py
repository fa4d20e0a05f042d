"""Ulysses: an all-to-all turns shards of the sequence into shards of the heads, and back (arXiv 2309.14509).

B batch, H heads, Tq and Tk tokens of one shard, D head dim, U ranks of the axis
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    if q.shape[2] == k.shape[2]:
        q, k, v = _heads_of_all_tokens((q, k, v), axis)
    else:
        (q,), (k, v) = _heads_of_all_tokens((q,), axis), _heads_of_all_tokens((k, v), axis)
    return _tokens_back(attend(q, k, v), axis)


def _heads_of_all_tokens(tensors: tuple[Tensor, ...], axis: Axis) -> Sequence[Tensor]:
    """(B, H, T, D) each, all of one length, to (B, H/U, U·T, D), in one exchange.

    They travel beside each other token by token: of one sample, what arrives lies in memory as attention reads it.
    """
    by_head = [x.unflatten(1, (axis.size, -1)).permute(1, 0, 3, 2, 4) for x in tensors]  # (U, B, T, H/U, D)
    arrived = axis.all_to_all(torch.stack(by_head, dim=3))
    return [x.transpose(1, 2) for x in arrived.movedim(0, 1).flatten(1, 2).unbind(2)]


def _tokens_back(out: Tensor, axis: Axis) -> Tensor:
    """(B, H/U, U·T, D) to (B, H, T, D)."""
    by_shard = out.transpose(1, 2).unflatten(1, (axis.size, -1)).movedim(1, 0)  # (U, B, T, H/U, D)
    return axis.all_to_all(by_shard).permute(1, 2, 0, 3, 4).flatten(2, 3).transpose(1, 2)
