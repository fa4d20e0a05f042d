"""Triton kernels of the `triton_fp8` attention, and their launch.

Imported on a GPU only: elsewhere there may be no Triton. Nothing is tuned while they run, nor specific to token counts,
so that steps can be recorded as CUDA graphs.

Queries, keys and values are rounded to e4m3 in blocks of tokens with one scale each, the largest magnitude to 448: as
e4m3 has an exponent, a finer scale would improve no relative precision. A block's scale costs nothing per score. That
of the queries and keys multiplies scores that are multiplied anyway. That of the values, s, becomes log2 s added to the
block's scores, so that weights carry it into the product; the sum of the weights has it divided out again.

Weights are 2^(score - maximum + 8) before they are rounded: at most 256 of the 448 that e4m3 has, and 17 powers of two
below that. They are summed before they are rounded: that counts keys whose values are so much smaller than others' that
their rounded weights vanish. A block's product starts at zero and is added to the result in fp32, since the sums within
a product of Hopper's fp8 units keep only about 14 bits.

B batch, H heads, Tq query tokens, Tk key tokens, D head dim
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ltxgen.models.transformer import float8
from ltxgen.models.transformer.kernels import lanes

FLOAT8_MAX = tl.constexpr(float8.FLOAT8_MAX)
SMALLEST_AMAX = tl.constexpr(float8.SMALLEST_AMAX)
HEADROOM = tl.constexpr(8.0)  # log2 of the largest weight
LN_2 = tl.constexpr(math.log(2))


class Tiles(NamedTuple):
    """How many queries a program takes, how many keys at a time, and how Triton compiles it."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int


TILES = Tiles(queries=64, keys=128, num_warps=4, num_stages=3)
SMALL_TILES = Tiles(queries=64, keys=64, num_warps=4, num_stages=3)
LARGE_MEMORY = frozenset({9, 10})
"""Major compute capabilities with 227 KiB of shared memory, which get TILES; 99 KiB do for SMALL_TILES."""


@triton.jit(do_not_specialize=["TOKENS"])
def round_kernel(
    x_ptr,
    values_ptr,
    scales_ptr,
    SAMPLE,  # values from sample to sample, from head to head, from token to token
    HEAD,
    TOKEN,
    TOKENS,
    factor,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """A block of tokens (BLOCK, DIM) in e4m3, padded with zeros to (BLOCK, LANES), and its scale times `factor`.

    TRANSPOSED: as (LANES, BLOCK), its tokens in the order of `_in_order`, and the scale as its log2.
    """
    block = tl.program_id(0)
    row = tl.program_id(1)
    place = row.to(tl.int64) * tl.num_programs(0) + block
    position = tl.arange(0, BLOCK)
    token = position
    if TRANSPOSED:
        token = position // 16 * 16 + position // 2 % 2 * 8 + position // 4 % 4 * 2 + position % 2
    token = (block * BLOCK + token)[:, None]
    lane = tl.arange(0, LANES)[None, :]
    start = x_ptr + (row // HEADS).to(tl.int64) * SAMPLE + (row % HEADS).to(tl.int64) * HEAD
    x = tl.load(start + token.to(tl.int64) * TOKEN + lane, mask=(token < TOKENS) & (lane < DIM), other=0.0)
    x = x.to(tl.float32)
    amax = tl.maximum(tl.max(tl.abs(x)), SMALLEST_AMAX)
    values = (x * (FLOAT8_MAX / amax)).to(values_ptr.dtype.element_ty)
    scale = amax / FLOAT8_MAX * factor
    if TRANSPOSED:
        tl.store(values_ptr + place * (BLOCK * LANES) + lane * BLOCK + position[:, None], values)
        tl.store(scales_ptr + place, tl.log2(scale))
    else:
        tl.store(values_ptr + place * (BLOCK * LANES) + position[:, None] * LANES + lane, values)
        tl.store(scales_ptr + place, scale)


@triton.jit
def _in_order(weights, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """Each 16 keys 8a + 2t + b as 4t + 2a + b: the threads that hold them after one product read them in the next.

    Without it weights would have to change threads between the two products.
    """
    weights = weights.reshape(QUERIES, KEYS // 16, 2, 4, 2).permute(0, 1, 3, 2, 4)
    return weights.reshape(QUERIES, KEYS)


@triton.jit
def _weights(scores, largest, scale, v_scale):
    """2^(scores · scale + v_scale - largest + 8), the new `largest`, and the sums without v_scale, which is a log2."""
    largest = tl.maximum(largest, tl.max(scores, 1) * scale + v_scale)
    weights = tl.exp2(scores * scale - (largest - (v_scale + HEADROOM))[:, None])
    return weights, largest, tl.sum(weights, 1) * tl.exp2(-v_scale)


@triton.jit(do_not_specialize=["Q_TOKENS", "K_TOKENS", "Q_BLOCKS", "K_BLOCKS"])
def attention_kernel(
    q_blocks,  # (B·H·Q_BLOCKS·QUERIES, LANES)
    k_blocks,  # (B·H·K_BLOCKS·KEYS, LANES)
    v_blocks,  # (B·H·K_BLOCKS·LANES, KEYS)
    q_scales_ptr,
    k_scales_ptr,
    v_scales_ptr,  # log2
    out_ptr,  # (B, Tq, H, D)
    lse_ptr,  # (B, H, Tq) or None
    Q_TOKENS,
    K_TOKENS,
    Q_BLOCKS,
    K_BLOCKS,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    LANES: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    block = tl.program_id(0)
    row = tl.program_id(1)
    q = q_blocks.load([(row * Q_BLOCKS + block) * QUERIES, 0])
    q_scale = tl.load(q_scales_ptr + row * Q_BLOCKS + block)
    first = row * K_BLOCKS
    last = first + K_BLOCKS - 1

    # The last block comes first, since it alone may have padding: the loop needs no mask.
    scores = tl.dot(q, k_blocks.load([last * KEYS, 0]).T)
    inside = (K_BLOCKS - 1) * KEYS + tl.arange(0, KEYS) < K_TOKENS
    scores = tl.where(inside[None, :], scores, -float("inf"))
    largest = tl.full([QUERIES], -float("inf"), tl.float32)
    k_scale = tl.load(k_scales_ptr + last)
    weights, largest, total = _weights(scores, largest, q_scale * k_scale, tl.load(v_scales_ptr + last))
    weights = _in_order(weights.to(q.dtype), QUERIES, KEYS)
    out = tl.dot(weights, v_blocks.load([last * LANES, 0]).T)

    for i in range(first, last):
        scores = tl.dot(q, k_blocks.load([i * KEYS, 0]).T)
        scale = q_scale * tl.load(k_scales_ptr + i)
        weights, new_largest, sums = _weights(scores, largest, scale, tl.load(v_scales_ptr + i))
        kept = tl.exp2(largest - new_largest)
        largest = new_largest
        total = total * kept + sums
        weights = _in_order(weights.to(q.dtype), QUERIES, KEYS)
        out = out * kept[:, None] + tl.dot(weights, v_blocks.load([i * LANES, 0]).T)

    token = block * QUERIES + tl.arange(0, QUERIES)
    lane = tl.arange(0, LANES)[None, :]
    inside = token < Q_TOKENS
    place = ((row // HEADS).to(tl.int64) * Q_TOKENS + token) * HEADS + row % HEADS
    out *= (1 / total)[:, None]
    tl.store(
        out_ptr + place[:, None] * DIM + lane,
        out.to(out_ptr.dtype.element_ty),
        mask=inside[:, None] & (lane < DIM),
    )
    if lse_ptr is not None:
        lse = (largest + tl.log2(total) - HEADROOM) * LN_2
        tl.store(lse_ptr + row.to(tl.int64) * Q_TOKENS + token, lse, mask=inside)


class Rounded(NamedTuple):
    """Blocks of tokens in e4m3, two-dimensional, and their scales (B, H, blocks), in log2 if transposed."""

    values: Tensor
    scales: Tensor

    def descriptor(self, rows: int) -> TensorDescriptor:
        return TensorDescriptor.from_tensor(self.values, [rows, self.values.shape[1]])


def rounded(x: Tensor, tokens: int, *, factor: float = 1.0, transposed: bool = False) -> Rounded:
    """x (B, H, T, D) in blocks of `tokens`, as `round_kernel` writes them."""
    if x.stride(-1) != 1:
        x = x.contiguous()
    B, H, T, D = x.shape
    width = head_lanes(D)
    blocks = -(-T // tokens)
    shape = (width, tokens) if transposed else (tokens, width)
    values = torch.empty(B * H * blocks * shape[0], shape[1], dtype=float8.FLOAT8, device=x.device)
    scales = torch.empty(B, H, blocks, dtype=torch.float32, device=x.device)
    round_kernel[(blocks, B * H)](
        x,
        values,
        scales,
        *x.stride()[:3],
        T,
        factor,
        HEADS=H,
        DIM=D,
        LANES=width,
        BLOCK=tokens,
        TRANSPOSED=transposed,
        num_warps=8,
    )
    return Rounded(values, scales)


def tiles_for(device: torch.device) -> Tiles:
    """Those that this GPU has shared memory for."""
    major, _ = torch.cuda.get_device_capability(device)
    return TILES if major in LARGE_MEMORY else SMALL_TILES


@torch.compiler.disable
def attention(q: Tensor, k: Tensor, v: Tensor, lse: Tensor | None = None, tiles: Tiles | None = None) -> Tensor:
    """softmax(q kᵀ / sqrt(D)) v in q's dtype, (B, Tq, H, D) in memory; `lse` (B, H, Tq) is written if given."""
    B, H, Tq, D = q.shape
    Tk = k.shape[2]
    assert k.shape == v.shape == (B, H, Tk, D)
    assert Tk > 0
    tiles = tiles or tiles_for(q.device)
    # Powers of two, and divided by sqrt(D).
    queries = rounded(q, tiles.queries, factor=math.log2(math.e) / math.sqrt(D))
    keys = rounded(k, tiles.keys)
    values = rounded(v, tiles.keys, transposed=True)
    q_blocks, k_blocks = queries.scales.shape[2], keys.scales.shape[2]
    out = torch.empty(B, Tq, H, D, dtype=q.dtype, device=q.device)
    attention_kernel[(q_blocks, B * H)](
        queries.descriptor(tiles.queries),
        keys.descriptor(tiles.keys),
        values.descriptor(head_lanes(D)),
        queries.scales,
        keys.scales,
        values.scales,
        out,
        lse,
        Tq,
        Tk,
        q_blocks,
        k_blocks,
        HEADS=H,
        DIM=D,
        LANES=head_lanes(D),
        QUERIES=tiles.queries,
        KEYS=tiles.keys,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    return out.transpose(1, 2)


def head_lanes(head_dim: int) -> int:
    """The width of padded heads: a power of two, and no less than the fp8 units take."""
    return max(32, lanes(head_dim))
