"""Attention with one short sequence, which is gathered whole, so that the long one stays where it is.

B batch, H heads, Tq and Tk tokens of one shard, D head dim, R ranks of an axis
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ltxgen.parallel.axes import Axis
from ltxgen.parallel.ring import AttentionWithLse


def gathered_keys(k: Tensor, v: Tensor, axes: Sequence[Axis], num_keys: int) -> tuple[Tensor, Tensor]:
    """Every shard's keys and values (B, H, Tk, D), as (B, H, num_keys, D) without the padding at their end.

    `axes` from the innermost one on. A few keys are had in one exchange an axis, and computing with them is what one
    rank does.
    """
    both = torch.stack([k.transpose(1, 2), v.transpose(1, 2)])  # (2, B, Tk, H, D)
    for axis in axes:
        if axis.size > 1:
            both = axis.all_gather(both).movedim(0, 2).flatten(2, 3)
    keys, values = both[:, :, :num_keys].transpose(2, 3)
    return keys, values


def gathered_query_attention(
    q: Tensor, k: Tensor, v: Tensor, axis: Axis, num_keys: Sequence[int], attend: AttentionWithLse
) -> Tensor:
    """A few queries (B, H, Tq, D) over the keys of all ranks: each rank attends with all queries to its own keys.

    `num_keys` counts each rank's keys, which stand before its padding. Partial results are merged in fp32.
    """
    queries = axis.all_gather(q)  # (R, B, H, Tq, D)
    dtype = torch.promote_types(q.dtype, torch.float32)
    own = num_keys[axis.rank]
    if own:
        out, lse = attend(queries.movedim(0, 2).flatten(2, 3), k[:, :, :own], v[:, :, :own], None)
        partial = torch.cat([out.to(dtype), lse.to(dtype)[..., None]], dim=-1)
        partial = partial.unflatten(2, (axis.size, -1)).movedim(2, 0)  # (R, B, H, Tq, D + 1)
    else:
        partial = queries.new_zeros((*queries.shape[:-1], queries.shape[-1] + 1), dtype=dtype)
        partial[..., -1] = -torch.inf  # a weight of zero
    arrived = axis.all_to_all(partial)
    weights = arrived[..., -1:].softmax(dim=0)
    return (weights * arrived[..., :-1]).sum(dim=0).to(q.dtype)
