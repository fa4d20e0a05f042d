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
        tensors = [each.x.contiguous() for each in projected]
        (B, T, C), eps = tensors[0].shape, projected[0].norm.eps
        assert all((x.shape, each.norm.eps) == ((B, T, C), eps) for x, each in zip(tensors, projected, strict=True))
        half = C // num_heads // 2
        if rotary is not None:
            assert rotary.cos.shape[1:] == rotary.sin.shape[1:] == (T, num_heads, half)
            assert len(rotary.cos) in (1, B)
            assert rotary.cos.is_contiguous()
            assert rotary.sin.is_contiguous()
        weights = [each.norm.weight for each in projected]
        heads_kernel[(T, B)](
            tensors[0],
            weights[0],
            tensors[1] if len(tensors) > 1 else None,
            weights[1] if len(tensors) > 1 else None,
            None if rotary is None else rotary.cos,
            None if rotary is None else rotary.sin,
            T,
            0 if rotary is None or len(rotary.cos) == 1 else T,
            eps,
            HEADS=num_heads,
            HALF=half,
            HEAD_LANES=lanes(num_heads),
            LANES=lanes(half),
            STEP=1 if rope_type == "split" else 2,
            GAP=half if rope_type == "split" else 1,
            num_warps=num_warps(C),
        )
        return [x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in tensors]

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
        hidden = linear(layer, x).contiguous()
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
    first, second = (*places, _NOWHERE, _NOWHERE)[:2]
    rows = [row for each in wanted for row in each[:2]]
    shift, scale, second_shift, second_scale = (*rows, None, None, None, None)[:4]
    assert len({id(row.table) for row in rows if row is not None}) <= 1, "two modulations take rows of one table"
    gate_tensors, gate_steps = _source(gate, x.shape)
    tensors, steps = _source(shift, x.shape)
    stream_kernel[(T, B)](
        x,
        None if update is None else update.contiguous(),
        keep if isinstance(keep, Tensor) else None,
        None if update is None else total,
        *gate_tensors,
        *tensors,
        *first,
        *second,
        T,
        *map(_number, (gate, shift, scale, second_shift, second_scale)),
        *gate_steps,
        *steps,
        0.0 if eps is None else eps,
        WIDTH=C,
        LANES=lanes(C),
        NORM=eps is not None,
        NUM_WANTED=len(wanted),
        num_warps=num_warps(C),
    )
    return total, [_activation(each, x.dtype) for each in places]


def _source(row: Row | None, shape: torch.Size) -> tuple[tuple[Tensor | None, ...], tuple[int, ...]]:
    """What a kernel needs to find the rows of a token's timestep in a stream of `shape`; steps are counted in rows."""
    if row is None:
        return (None, None, None), (0, 0, 0, 0)
    B, T, C = shape
    table, (rows, of_token), _ = row
    assert table.stride() == rows.stride()[2:] == (C, 1)
    num_samples, num_levels = rows.shape[:2]
    assert num_samples in (1, B)
    sample = 0 if num_samples == 1 else rows.stride(0) // C
    level = rows.stride(1) // C
    if of_token is None:
        assert num_levels in (1, T)
        return (table, rows, None), (sample, level, int(num_levels > 1), 0)
    assert len(of_token) in (1, B)
    assert (of_token.shape[1], of_token.stride(1)) == (T, 1)
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
