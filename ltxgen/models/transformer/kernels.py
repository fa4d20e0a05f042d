"""Triton kernels for what stands between a block's products and attentions: `fused` launches them.

Imported where the model runs on a GPU only: elsewhere there may be no Triton. A program makes one token, whose values
it holds in registers from a single read; all is computed in fp32 and rounded once. Nothing is tuned while it runs, nor
specific to token counts, so that steps can be recorded as CUDA graphs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ltxgen.models.transformer import float8

FLOAT8_MAX = tl.constexpr(float8.FLOAT8_MAX)
SMALLEST_AMAX = tl.constexpr(float8.SMALLEST_AMAX)

# One compiled kernel serves all sizes and all rows of a table.
_STREAM_NUMBERS = [
    *("TOKENS", "GATE", "SHIFT", "SCALE", "SECOND_SHIFT", "SECOND_SCALE"),
    *("GATE_SAMPLE", "GATE_LEVEL", "GATE_OWN", "GATE_TOKENS", "SAMPLE", "LEVEL", "OWN", "OF_TOKENS"),
]


@triton.jit
def _write(y, plain_ptr, values_ptr, scales_ptr, row, place, inside):
    """y, one row, as it is and scaled to fp8 as `float8.scaled_rows` does, to those that aren't None."""
    if plain_ptr is not None:
        tl.store(plain_ptr + place, y.to(plain_ptr.dtype.element_ty), mask=inside)
    if values_ptr is not None:
        amax = tl.maximum(tl.max(tl.abs(y)), SMALLEST_AMAX)
        tl.store(values_ptr + place, (y * (FLOAT8_MAX / amax)).to(values_ptr.dtype.element_ty), mask=inside)
        tl.store(scales_ptr + row, amax / FLOAT8_MAX)


@triton.jit
def _first_row(sample, token, of_token_ptr, SAMPLE, LEVEL, OWN, OF_TOKENS):
    """Where the rows of a token's timestep begin, in rows."""
    level = token * OWN
    if of_token_ptr is not None:
        level = tl.load(of_token_ptr + sample * OF_TOKENS + token)
    return sample * SAMPLE + level * LEVEL


@triton.jit
def _modulation_row(table_ptr, rows_ptr, first, number, lane, inside, WIDTH: tl.constexpr):
    # All tokens read the same few rows, which should stay in the cache nearest to them.
    learned = tl.load(table_ptr + number * WIDTH + lane, mask=inside, other=0.0, eviction_policy="evict_last")
    theirs = tl.load(rows_ptr + (first + number) * WIDTH + lane, mask=inside, other=0.0, eviction_policy="evict_last")
    return learned.to(tl.float32) + theirs.to(tl.float32)


@triton.jit(do_not_specialize=_STREAM_NUMBERS)
def stream_kernel(
    x_ptr,
    update_ptr,
    keep_ptr,
    sum_ptr,
    gate_table_ptr,
    gate_rows_ptr,
    gate_of_token_ptr,
    table_ptr,
    rows_ptr,
    of_token_ptr,
    plain_ptr,
    values_ptr,
    scales_ptr,
    second_plain_ptr,
    second_values_ptr,
    second_scales_ptr,
    TOKENS,
    GATE,  # which row of the table
    SHIFT,
    SCALE,
    SECOND_SHIFT,
    SECOND_SCALE,
    GATE_SAMPLE,  # rows from sample to sample, and from timestep to timestep
    GATE_LEVEL,
    GATE_OWN,  # 1: each token has its own timestep
    GATE_TOKENS,  # tokens from sample to sample
    SAMPLE,
    LEVEL,
    OWN,
    OF_TOKENS,
    eps,
    WIDTH: tl.constexpr,
    LANES: tl.constexpr,
    NORM: tl.constexpr,
    NUM_WANTED: tl.constexpr,
):
    """x + gate · update, its norm, and up to two modulations of that; what isn't there is None."""
    token = tl.program_id(0)
    sample = tl.program_id(1).to(tl.int64)  # tokens times width may pass 2^31
    row = sample * TOKENS + token
    lane = tl.arange(0, LANES)
    inside = lane < WIDTH
    place = row * WIDTH + lane
    x = tl.load(x_ptr + place, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
    if update_ptr is not None:
        update = tl.load(update_ptr + place, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
        if gate_table_ptr is not None:
            first = _first_row(sample, token, gate_of_token_ptr, GATE_SAMPLE, GATE_LEVEL, GATE_OWN, GATE_TOKENS)
            update *= _modulation_row(gate_table_ptr, gate_rows_ptr, first, GATE, lane, inside, WIDTH)
        if keep_ptr is not None:
            update = tl.where(tl.load(keep_ptr + sample) != 0, update, 0.0)
        x += update
        tl.store(sum_ptr + place, x.to(sum_ptr.dtype.element_ty), mask=inside)
    if NORM:
        x *= tl.rsqrt(tl.sum(x * x) / WIDTH + eps)
    if NUM_WANTED > 0:
        y = x
        if table_ptr is not None:
            first = _first_row(sample, token, of_token_ptr, SAMPLE, LEVEL, OWN, OF_TOKENS)
            y = x * (1 + _modulation_row(table_ptr, rows_ptr, first, SCALE, lane, inside, WIDTH))
            y += _modulation_row(table_ptr, rows_ptr, first, SHIFT, lane, inside, WIDTH)
        _write(y, plain_ptr, values_ptr, scales_ptr, row, place, inside)
        if NUM_WANTED > 1:
            y = x * (1 + _modulation_row(table_ptr, rows_ptr, first, SECOND_SCALE, lane, inside, WIDTH))
            y += _modulation_row(table_ptr, rows_ptr, first, SECOND_SHIFT, lane, inside, WIDTH)
            _write(y, second_plain_ptr, second_values_ptr, second_scales_ptr, row, place, inside)


@triton.jit
def _norm_and_rotate(
    x_ptr, weight_ptr, cos, sin, first, second, inside, eps, WIDTH: tl.constexpr, ROTATE: tl.constexpr
):
    """One row, in place; `first` and `second` are where the two values of each pair stand."""
    a = tl.load(x_ptr + first, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(x_ptr + second, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(a * a + b * b) / WIDTH + eps)
    a *= scale * tl.load(weight_ptr + first, mask=inside, other=0.0, eviction_policy="evict_last").to(tl.float32)
    b *= scale * tl.load(weight_ptr + second, mask=inside, other=0.0, eviction_policy="evict_last").to(tl.float32)
    turned_a, turned_b = a, b
    if ROTATE:
        turned_a, turned_b = a * cos - b * sin, b * cos + a * sin
    tl.store(x_ptr + first, turned_a.to(x_ptr.dtype.element_ty), mask=inside)
    tl.store(x_ptr + second, turned_b.to(x_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["TOKENS", "TABLE_TOKENS"])
def heads_kernel(
    x_ptr,
    weight_ptr,
    other_ptr,  # keys beside queries: they share the tables
    other_weight_ptr,
    cos_ptr,
    sin_ptr,
    TOKENS,
    TABLE_TOKENS,  # from sample to sample
    eps,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,  # of a head
    HEAD_LANES: tl.constexpr,
    LANES: tl.constexpr,
    STEP: tl.constexpr,  # from pair to pair
    GAP: tl.constexpr,  # between the two of a pair
):
    WIDTH: tl.constexpr = HEADS * 2 * HALF
    token = tl.program_id(0)
    sample = tl.program_id(1).to(tl.int64)
    head = tl.arange(0, HEAD_LANES)[:, None]
    pair = tl.arange(0, LANES)[None, :]
    inside = (head < HEADS) & (pair < HALF)
    first = head * (2 * HALF) + pair * STEP
    second = first + GAP
    cos = 1.0
    sin = 0.0
    if cos_ptr is not None:
        angle = (sample * TABLE_TOKENS + token) * (HEADS * HALF) + (head * HALF + pair)
        cos = tl.load(cos_ptr + angle, mask=inside, other=0.0).to(tl.float32)
        sin = tl.load(sin_ptr + angle, mask=inside, other=0.0).to(tl.float32)
    start = (sample * TOKENS + token) * WIDTH
    ROTATE: tl.constexpr = cos_ptr is not None
    _norm_and_rotate(x_ptr + start, weight_ptr, cos, sin, first, second, inside, eps, WIDTH, ROTATE)
    if other_ptr is not None:
        _norm_and_rotate(other_ptr + start, other_weight_ptr, cos, sin, first, second, inside, eps, WIDTH, ROTATE)


@triton.jit(do_not_specialize=["TOKENS"])
def gate_kernel(
    out_ptr,
    logits_ptr,
    plain_ptr,
    values_ptr,
    scales_ptr,
    SAMPLE,  # values from sample to sample, from token to token, from head to head
    TOKEN,
    HEAD,
    TOKENS,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    HEAD_LANES: tl.constexpr,
    LANES: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    sample = tl.program_id(1).to(tl.int64)
    row = sample * TOKENS + token
    heads = tl.arange(0, HEAD_LANES)
    # Before it is spread over a head's values: once a head.
    logits = tl.load(logits_ptr + row * HEADS + heads, mask=heads < HEADS, other=0.0).to(tl.float32)
    gate = 2 / (1 + tl.exp(-logits))
    head = heads[:, None]
    lane = tl.arange(0, LANES)[None, :]
    inside = (head < HEADS) & (lane < DIM)
    place = head * HEAD + lane
    out = tl.load(out_ptr + (sample * SAMPLE + token * TOKEN) + place, mask=inside, other=0.0).to(tl.float32)
    y = out * gate[:, None]
    _write(y, plain_ptr, values_ptr, scales_ptr, row, row * (HEADS * DIM) + (head * DIM + lane), inside)


@triton.jit
def gelu_kernel(x_ptr, values_ptr, scales_ptr, WIDTH: tl.constexpr, LANES: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    inside = lane < WIDTH
    place = row * WIDTH + lane
    x = tl.load(x_ptr + place, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
    # x/2 (1 + tanh z) is x times the sigmoid of 2z; z is sqrt(2/π) (x + 0.044715 x³).
    y = x / (1 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    _write(y, None, values_ptr, scales_ptr, row, place, inside)


def lanes(width: int) -> int:
    """How many values a kernel's vectors have room for: powers of two."""
    return 1 << (width - 1).bit_length()  # triton.next_power_of_2 takes 10 ms a forward


def num_warps(width: int) -> int:
    """For 16 values a thread, up to as many warps as pay."""
    return max(1, min(16, lanes(width) // 512))
