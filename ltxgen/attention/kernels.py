"""Triton kernels that round what attends to fp8 and its result back: `cudnn_fp8` launches them.

Imported where attention runs on a GPU only: elsewhere there may be no Triton. Nothing waits for the host, is tuned
while it runs, or is specific to token counts, so that steps can be recorded as CUDA graphs.

A row is one token's values in one head. B batch, H heads, T tokens, D head dim
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ltxgen.models.transformer import float8
from ltxgen.models.transformer.kernels import lanes

FLOAT8_MAX = tl.constexpr(float8.FLOAT8_MAX)
SMALLEST_AMAX = tl.constexpr(float8.SMALLEST_AMAX)

# Softmax weights are at most 1; a power of two loses nothing, and leaves room below e4m3's 448.
_WEIGHTS_SCALE = tl.constexpr(256.0)
_APART = tl.constexpr(4)  # numbers from one to the next: cuDNN takes tensors that start at multiples of 16 bytes
_VALUES = 4096  # that a program holds
_TILES = 8  # that a program reads, so that few meet at the largest magnitude

_TOKENS = ["Q_TOKENS", "K_TOKENS", "SAMPLES"]  # one compiled kernel serves all


class Numbers(NamedTuple):
    """What goes with the rounded values, each of one number in fp32 (and three that mean nothing).

    Values times `descale_*` are what they were rounded from. The result's `descale` is that of the values, since no
    mean of values is larger than the largest.
    """

    descale_q: Tensor
    descale_k: Tensor
    descale_v: Tensor
    scale_o: Tensor
    descale_s: Tensor
    scale_s: Tensor
    amax_s: Tensor
    amax_o: Tensor


class Rounded(NamedTuple):
    """q, k and v in e4m3, (B,T,H,D) and contiguous."""

    q: Tensor
    k: Tensor
    v: Tensor
    numbers: Numbers


def rounded(q: Tensor, k: Tensor, v: Tensor) -> Rounded:
    """q (B,H,Tq,D), k and v (B,H,Tk,D), each with the scale that brings its largest magnitude to that of e4m3."""
    B, H, Tq, D = q.shape
    Tk = k.shape[2]
    tensors = [x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v)]
    numbers = q.new_zeros((len(Numbers._fields), _APART.value), dtype=torch.float32)
    q8, k8, v8 = (x.new_empty((B, x.shape[2], H, D), dtype=float8.FLOAT8) for x in tensors)
    strides = [x.stride(axis) for x in tensors for axis in (0, 2, 1)]
    rows = _VALUES // lanes(D)
    grid = (_parts(B * H * max(Tq, Tk), rows * _TILES), 3)
    sizes = {"HEADS": H, "DIM": D, "LANES": lanes(D), "ROWS": rows, "TILES": _TILES}
    with torch.cuda.device(q.device):
        _amax_kernel[grid](*tensors, numbers, B, Tq, Tk, *strides, **sizes)
        _round_kernel[grid](*tensors, q8, k8, v8, numbers, B, Tq, Tk, *strides, **sizes)
    return Rounded(q8, k8, v8, Numbers(*numbers.unbind()))


def unrounded(out: Tensor, descale: Tensor, dtype: torch.dtype) -> Tensor:
    """`out`, contiguous and in e4m3, times `descale` in `dtype`."""
    plain = torch.empty_like(out, dtype=dtype)
    with torch.cuda.device(out.device):
        _unround_kernel[(_parts(out.numel(), _VALUES),)](out, plain, descale, out.numel(), VALUES=_VALUES)
    return plain


def _parts(whole: int, size: int) -> int:
    return -(-whole // size)


@triton.jit
def _places(tile, tokens, num_rows, SAMPLE, TOKEN, HEAD, HEADS: tl.constexpr, ROWS: tl.constexpr):
    """The rows of a tile, which of them there are, and where they start in a tensor with these strides."""
    row = tile * ROWS + tl.arange(0, ROWS)
    head = row % HEADS
    token = (row // HEADS) % tokens
    sample = row // HEADS // tokens
    place = sample.to(tl.int64) * SAMPLE + token.to(tl.int64) * TOKEN + head.to(tl.int64) * HEAD
    return row, row < num_rows, place


@triton.jit
def _find_amax(
    x_ptr,
    amax_ptr,
    samples,
    tokens,
    SAMPLE,
    TOKEN,
    HEAD,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    LANES: tl.constexpr,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
):
    num_rows = samples * tokens * HEADS
    first = tl.program_id(0) * TILES
    if first * ROWS < num_rows:
        lane = tl.arange(0, LANES)[None, :]
        largest = tl.zeros((ROWS, LANES), tl.float32)
        for tile in range(TILES):
            _, there, place = _places(first + tile, tokens, num_rows, SAMPLE, TOKEN, HEAD, HEADS, ROWS)
            inside = there[:, None] & (lane < DIM)
            x = tl.load(x_ptr + (place[:, None] + lane), mask=inside, other=0.0).to(tl.float32)
            largest = tl.maximum(largest, tl.abs(x))
        tl.atomic_max(amax_ptr, tl.max(largest), sem="relaxed")


@triton.jit(do_not_specialize=_TOKENS)
def _amax_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    numbers_ptr,  # zeros; the largest magnitudes are left beside the first three
    SAMPLES,
    Q_TOKENS,
    K_TOKENS,
    Q_SAMPLE,
    Q_TOKEN,
    Q_HEAD,
    K_SAMPLE,
    K_TOKEN,
    K_HEAD,
    V_SAMPLE,
    V_TOKEN,
    V_HEAD,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    LANES: tl.constexpr,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
):
    amax_ptr = numbers_ptr + tl.program_id(1) * _APART + 1
    if tl.program_id(1) == 0:
        _find_amax(q_ptr, amax_ptr, SAMPLES, Q_TOKENS, Q_SAMPLE, Q_TOKEN, Q_HEAD, HEADS, DIM, LANES, ROWS, TILES)
    elif tl.program_id(1) == 1:
        _find_amax(k_ptr, amax_ptr, SAMPLES, K_TOKENS, K_SAMPLE, K_TOKEN, K_HEAD, HEADS, DIM, LANES, ROWS, TILES)
    else:
        _find_amax(v_ptr, amax_ptr, SAMPLES, K_TOKENS, V_SAMPLE, V_TOKEN, V_HEAD, HEADS, DIM, LANES, ROWS, TILES)


@triton.jit
def _round(
    x_ptr,
    values_ptr,
    amax,
    samples,
    tokens,
    SAMPLE,
    TOKEN,
    HEAD,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    LANES: tl.constexpr,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
):
    num_rows = samples * tokens * HEADS
    first = tl.program_id(0) * TILES
    scale = FLOAT8_MAX / amax
    if first * ROWS < num_rows:
        lane = tl.arange(0, LANES)[None, :]
        for tile in range(TILES):
            row, there, place = _places(first + tile, tokens, num_rows, SAMPLE, TOKEN, HEAD, HEADS, ROWS)
            inside = there[:, None] & (lane < DIM)
            x = tl.load(x_ptr + (place[:, None] + lane), mask=inside, other=0.0).to(tl.float32)
            target = row[:, None].to(tl.int64) * DIM + lane
            tl.store(values_ptr + target, (x * scale).to(values_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=_TOKENS)
def _round_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    q_values_ptr,
    k_values_ptr,
    v_values_ptr,
    numbers_ptr,
    SAMPLES,
    Q_TOKENS,
    K_TOKENS,
    Q_SAMPLE,
    Q_TOKEN,
    Q_HEAD,
    K_SAMPLE,
    K_TOKEN,
    K_HEAD,
    V_SAMPLE,
    V_TOKEN,
    V_HEAD,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    LANES: tl.constexpr,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
):
    number_ptr = numbers_ptr + tl.program_id(1) * _APART
    amax = tl.maximum(tl.load(number_ptr + 1), SMALLEST_AMAX)
    if tl.program_id(0) == 0:
        tl.store(number_ptr, amax / FLOAT8_MAX)
    if tl.program_id(1) == 0:
        _round(q_ptr, q_values_ptr, amax, SAMPLES, Q_TOKENS, Q_SAMPLE, Q_TOKEN, Q_HEAD, HEADS, DIM, LANES, ROWS, TILES)
    elif tl.program_id(1) == 1:
        _round(k_ptr, k_values_ptr, amax, SAMPLES, K_TOKENS, K_SAMPLE, K_TOKEN, K_HEAD, HEADS, DIM, LANES, ROWS, TILES)
    else:
        _round(v_ptr, v_values_ptr, amax, SAMPLES, K_TOKENS, V_SAMPLE, V_TOKEN, V_HEAD, HEADS, DIM, LANES, ROWS, TILES)
        if tl.program_id(0) == 0:
            tl.store(numbers_ptr + 3 * _APART, FLOAT8_MAX / amax)
            tl.store(numbers_ptr + 4 * _APART, 1 / _WEIGHTS_SCALE)
            tl.store(numbers_ptr + 5 * _APART, _WEIGHTS_SCALE)


@triton.jit(do_not_specialize=["NUM_VALUES"])
def _unround_kernel(values_ptr, plain_ptr, descale_ptr, NUM_VALUES, VALUES: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * VALUES + tl.arange(0, VALUES)
    inside = place < NUM_VALUES
    values = tl.load(values_ptr + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(plain_ptr + place, (values * tl.load(descale_ptr)).to(plain_ptr.dtype.element_ty), mask=inside)
