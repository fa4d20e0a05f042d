"""Ring attention: blocks of the sequence attend to each other in turn, partial results merge exactly.

Each partial result comes with the log of its softmax's denominator (arXiv 2310.01889), so that the merge is exact
maths, in fp32.

B batch, H heads, Tq and Tk tokens of one block, D head dim, R ranks of the ring
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ltxgen.parallel.axes import Axis

AttentionWithLse = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
"""As an attention function, and beside its result the log-sum-exp (B, H, Tq) of each query's logits, in fp32 or above.
A query whose keys the mask hides all has zeros and -inf."""


def ring_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    axis: Axis,
    num_keys: Sequence[int],
    attend: AttentionWithLse,
) -> Tensor:
    """This rank's queries (B, H, Tq, D) over the keys of all ranks, whose blocks (B, H, Tk, D) go round the ring.

    `num_keys` counts each rank's keys, which stand before its padding; what is padding is never attended to. `mask` is
    additive, broadcastable to (B, H, Tq, all keys). The next block travels while this one is computed with.
    """
    block = torch.stack([k, v])
    starts = [sum(num_keys[:rank]) for rank in range(axis.size)]
    result: tuple[Tensor, Tensor] | None = None
    for turn in range(axis.size):
        arriving = axis.pass_on(block) if turn + 1 < axis.size else None
        source = (axis.rank - turn) % axis.size
        if num_keys[source]:
            keys, values = block[:, :, :, : num_keys[source]]
            columns = None if mask is None else mask[..., starts[source] : starts[source] + num_keys[source]]
            partial = attend(q, keys, values, columns)
            result = partial if result is None else merge(*result, *partial)
        if arriving is not None:
            block = arriving.wait()
    assert result is not None, "no keys on any rank"
    return result[0].to(q.dtype)


def merge(out: Tensor, lse: Tensor, other_out: Tensor, other_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over two sets of keys from the attention over each: results (B, H, Tq, D), in fp32 or above."""
    dtype = torch.promote_types(out.dtype, torch.float32)
    weight = torch.sigmoid(other_lse - lse).nan_to_num(nan=0.0)  # NaN: -inf in both, the results are zeros
    return torch.lerp(out.to(dtype), other_out.to(dtype), weight.to(dtype)[..., None]), torch.logaddexp(lse, other_lse)
