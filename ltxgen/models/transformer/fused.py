"""`Elementwise` as Triton kernels, which read and write each tensor once, for NVIDIA GPUs.

Imported where they run: `kernels` needs Triton. B batch, T tokens, H heads, D head dim, C width, K rows
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltxgen.models.transformer.adaln import Modulation
from ltxgen.models.transformer.attention import Attention
from ltxgen.models.transformer.block import FeedForward, TransformerBlock
from ltxgen.models.transformer.elementwise import Heads, Residual, Wanted, gelu_product
from ltxgen.models.transformer.float8 import FLOAT8, Activation, Forms, Rows, Scaled, linear
from ltxgen.models.transformer.kernels import gate_kernel, gelu_kernel, heads_kernel, lanes, num_warps, stream_kernel
from ltxgen.models.transformer.rope import RopeType, RotaryTable

GELU_WITHIN_ROWS = 4096
"""From so many tokens on, GELU within the product is faster: 1076 us for 1068 + 162 at 6144 tokens on an H200. At 1536
the product itself becomes slower, 305 us for 271."""


def use_fused_kernels(transformer: nn.Module) -> None:
    """Let kernels do what stands between the blocks' products and attentions; `fusing.why_not_fused` says where."""
    fused = TritonElementwise()
    for module in transformer.modules():
        if isinstance(module, TransformerBlock | Attention | FeedForward):
            module.elementwise = fused


class Row(NamedTuple):
    """A row of modulation that its readers compute: of the learned `table` (K, C), plus that of the timesteps."""

    table: Tensor
    modulation: Modulation
    number: int


class TritonElementwise:
    """See `Elementwise`. For tensors of 16 bits on an NVIDIA GPU; each result is rounded once."""

    def rows(self, table: Tensor, modulation: Modulation) -> Sequence[Row]:
        return [Row(table, modulation, number) for number in range(len(table))]

    def added(self, stream: Residual) -> Tensor:
        if stream.update is None:
            return stream.x
        total, _ = _run_stream(stream, None)
        return total

    def normed(self, stream: Residual, eps: float, *wanted: Wanted) -> tuple[Tensor, Sequence[Activation]]:
        return _run_stream(stream, eps, *wanted)

    def modulated(self, x: Tensor, wanted: Wanted) -> Activation:
        _, (modulated,) = _run_stream(Residual(x), None, wanted)
        return modulated

    def heads(
        self, projected: Sequence[Heads], num_heads: int, rotary: RotaryTable | None, rope_type: RopeType
    ) -> Sequence[Tensor]:
        for x, norm in projected:
            assert (norm.eps, x.shape) == (projected[0].norm.eps, projected[0].x.shape)
            assert x.is_contiguous()
        if rotary is not None:
            assert rotary.cos.is_contiguous()
            assert rotary.sin.is_contiguous()
        (x, norm), other = projected[0], projected[1] if len(projected) == 2 else None
        B, T, C = x.shape
        half = C // num_heads // 2
        heads_kernel[(T, B)](
            x,
            norm.weight,
            None if other is None else other.x,
            None if other is None else other.norm.weight,
            None if rotary is None else rotary.cos,
            None if rotary is None else rotary.sin,
            T,
            0 if rotary is None or len(rotary.cos) == 1 else T,
            norm.eps,
            HEADS=num_heads,
            HALF=half,
            HEAD_LANES=lanes(num_heads),
            LANES=lanes(half),
            STEP=1 if rope_type == "split" else 2,
            GAP=half if rope_type == "split" else 1,
            num_warps=num_warps(C),
        )
        return [each.x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for each in projected]

    def gated(self, out: Tensor, logits: Tensor, forms: Forms) -> Activation:
        B, T, H, D = out.shape
        if out.stride(-1) != 1:
            out = out.contiguous()
        places = _places(out, (B, T, H * D), forms)
        gate_kernel[(T, B)](
            out,
            logits.contiguous(),
            *places,
            *out.stride()[:3],
            T,
            HEADS=H,
            DIM=D,
            HEAD_LANES=lanes(H),
            LANES=lanes(D),
            num_warps=num_warps(H * D),
        )
        return _activation(places, out.dtype)

    def gelu_linear(self, layer: nn.Module, x: Activation, forms: Forms) -> Activation:
        if forms.plain:
            if type(layer) is nn.Linear and isinstance(x, Tensor) and x.shape[:-1].numel() >= GELU_WITHIN_ROWS:
                return gelu_product(x, layer.weight, layer.bias)
            return F.gelu(linear(layer, x), approximate="tanh")
        hidden = linear(layer, x)
        places = _places(hidden, hidden.shape, forms)
        C = hidden.shape[-1]
        rows = hidden.shape[:-1].numel()
        gelu_kernel[(rows,)](hidden, *places[1:], WIDTH=C, LANES=lanes(C), num_warps=num_warps(C))
        return _activation(places, hidden.dtype)


Places = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Where an activation is written: as it is, its values in fp8, their scales."""


def _run_stream(stream: Residual, eps: float | None, *wanted: Wanted) -> tuple[Tensor, list[Activation]]:
    """The stream with everything added; and what is wanted of its norm, or with `eps` None of itself."""
    x, update, gate, keep = stream
    B, T, C = x.shape
    x = x.contiguous()
    total = x if update is None else torch.empty_like(x)
    places = [_places(x, x.shape, each.forms) for each in wanted]
    first, second = (*wanted, None, None)[:2]
    gate_tensors, gate_numbers = _source(gate, C)
    tensors, numbers = _source(None if first is None else first.scale, C)
    assert len({id(row.table) for each in wanted for row in each[:2] if row is not None}) <= 1, "of one table"
    stream_kernel[(T, B)](
        x,
        None if update is None else update.contiguous(),
        keep if isinstance(keep, Tensor) else None,
        None if update is None else total,
        *gate_tensors,
        *tensors,
        *(places[0] if first is not None else _NOWHERE),
        *(places[1] if second is not None else _NOWHERE),
        T,
        _number(gate),
        *(_number(row) for each in (first, second) for row in ((None, None) if each is None else each[:2])),
        *gate_numbers,
        *numbers,
        0.0 if eps is None else eps,
        WIDTH=C,
        LANES=lanes(C),
        NORM=eps is not None,
        NUM_WANTED=len(wanted),
        num_warps=num_warps(C),
    )
    return total, [_activation(each, x.dtype) for each in places]


def _source(row: Row | None, width: int) -> tuple[tuple[Tensor | None, ...], tuple[int, ...]]:
    """What a kernel needs to find rows of the tables of `row`, and the steps between them in rows."""
    if row is None:
        return (None, None, None), (0, 0, 0, 0)
    table, (rows, of_token), _ = row
    assert table.stride() == rows.stride()[2:] == (width, 1)
    num_samples, num_levels = rows.shape[:2]
    sample = 0 if num_samples == 1 else rows.stride(0) // width
    level = rows.stride(1) // width
    if of_token is None:
        return (table, rows, None), (sample, level, int(num_levels > 1), 0)
    assert of_token.stride(1) == 1
    return (table, rows, of_token), (sample, level, 0, 0 if len(of_token) == 1 else of_token.stride(0))


_NOWHERE: Places = (None, None, None)


def _places(like: Tensor, shape: Sequence[int], forms: Forms) -> Places:
    plain = like.new_empty(shape) if forms.plain else None
    if not forms.scaled:
        return plain, None, None
    return plain, like.new_empty(shape, dtype=FLOAT8), like.new_empty((*shape[:-1], 1), dtype=torch.float32)


def _activation(places: Places, dtype: torch.dtype) -> Activation:
    plain, values, scales = places
    if values is not None and scales is not None:
        return Rows(plain, Scaled(values, scales), dtype)
    assert plain is not None
    return plain


def _number(row: Row | None) -> int:
    return 0 if row is None else row.number
