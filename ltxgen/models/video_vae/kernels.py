"""Triton kernels of the video VAE: the convolution with what stands around it, and the norm where it stands alone.

Imported where the model runs on a GPU only. Pixels hold their channels side by side here: (F, H, W, C), one video.

The convolution is an implicit GEMM. A program owns a patch of one frame and a block of output channels; for each tap
of the 3x3x3 kernel and each slice of channels, Hopper's copy engine fetches the patch shifted by the tap, and gives
zeros where that reaches beyond the frame. Frames beyond the ends are the end frames: their index is clamped.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

PIXEL_NORM_EPS = tl.constexpr(1e-8)


@dataclass(frozen=True)
class Blocks:
    """How one convolution is cut up: a patch of rows x columns, output channels, and channels per step."""

    rows: int = 8
    columns: int = 16
    outputs: int = 128
    inputs: int = 64
    num_warps: int = 4
    num_stages: int = 3


@triton.jit
def _silu(x):
    return x / (1 + tl.exp(-x))


# One compiled kernel serves videos of every size.
@triton.jit(do_not_specialize=["FRAMES", "HEIGHT", "WIDTH"])
def _conv_kernel(
    x_desc,
    weight_desc,
    bias_ptr,
    skip_ptr,
    out_ptr,
    normed_ptr,
    FRAMES,
    HEIGHT,
    WIDTH,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    FRAMES_BEFORE: tl.constexpr,
    STRIDE_T: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    ADD_SKIP: tl.constexpr,
    WRITE_OUT: tl.constexpr,
    WRITE_NORMED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    # Blocks of output channels run fastest: programs that run together share their patch in the L2 cache.
    OUT_BLOCKS: tl.constexpr = (C_OUT + OUTPUTS - 1) // OUTPUTS
    pid = tl.program_id(0)
    first_output = (pid % OUT_BLOCKS) * OUTPUTS
    patch = pid // OUT_BLOCKS
    row_blocks = tl.cdiv(HEIGHT, ROWS)
    column_blocks = tl.cdiv(WIDTH, COLUMNS)
    column = (patch % column_blocks) * COLUMNS
    row = (patch // column_blocks % row_blocks) * ROWS
    frame = patch // (column_blocks * row_blocks)

    sums = tl.zeros([ROWS * COLUMNS, OUTPUTS], tl.float32)
    for step in range(27 * ((C_IN + INPUTS - 1) // INPUTS)):
        # Taps run faster than channels: the 27 shifted patches overlap, so they come from the L2 cache.
        tap = step % 27
        channel = step // 27 * INPUTS
        shifted = frame + tap // 9 - FRAMES_BEFORE
        shifted = tl.minimum(tl.maximum(shifted, 0), FRAMES - 1)
        x = x_desc.load([shifted, row + tap // 3 % 3 - 1, column + tap % 3 - 1, channel])
        weight = weight_desc.load([tap * C_OUT + first_output, channel])
        sums = tl.dot(x.reshape(ROWS * COLUMNS, INPUTS), weight.T, sums)

    outputs = first_output + tl.arange(0, OUTPUTS)
    sums += tl.load(bias_ptr + outputs, mask=outputs < C_OUT, other=0.0).to(tl.float32)[None, :]

    # Upsampling: an output channel is (phase in time, height, width; channel), and its phase says which pixel it is.
    CHANNELS: tl.constexpr = C_OUT // (STRIDE_T * STRIDE_H * STRIDE_W)
    phase = first_output // CHANNELS
    pixel = tl.arange(0, ROWS * COLUMNS)
    rows = row + pixel // COLUMNS
    columns = column + pixel % COLUMNS
    out_frame = frame * STRIDE_T + phase // (STRIDE_H * STRIDE_W) - (STRIDE_T - 1)
    out_rows = rows * STRIDE_H + phase // STRIDE_W % STRIDE_H
    out_columns = columns * STRIDE_W + phase % STRIDE_W
    out_pixels = (out_frame.to(tl.int64) * HEIGHT * STRIDE_H + out_rows) * (WIDTH * STRIDE_W) + out_columns
    places = out_pixels[:, None] * CHANNELS + (outputs - phase * CHANNELS)[None, :]
    inside = ((rows < HEIGHT) & (columns < WIDTH) & (out_frame >= 0))[:, None] & (outputs < C_OUT)[None, :]
    if ADD_SKIP:
        sums += tl.load(skip_ptr + places, mask=inside, other=0.0).to(tl.float32)
    if WRITE_OUT:
        tl.store(out_ptr + places, sums.to(out_ptr.dtype.element_ty), mask=inside)
    if WRITE_NORMED:
        tl.static_assert(OUTPUTS == CHANNELS, "a norm needs all channels of its pixels")
        scale = tl.rsqrt(tl.sum(sums * sums, axis=1) / CHANNELS + PIXEL_NORM_EPS)
        normed = _silu(sums * scale[:, None])
        tl.store(normed_ptr + places, normed.to(normed_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["PIXELS"])
def _norm_silu_kernel(x_ptr, out_ptr, PIXELS, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    pixels = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    places = pixels[:, None] * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    inside = (pixels < PIXELS)[:, None]
    x = tl.load(x_ptr + places, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=1) / CHANNELS + PIXEL_NORM_EPS)
    tl.store(out_ptr + places, _silu(x * scale[:, None]).to(out_ptr.dtype.element_ty), mask=inside)


def pack_weight(weight: Tensor, stride: tuple[int, int, int] = (1, 1, 1)) -> Tensor:
    """(C', C, 3, 3, 3) as (27, C', C), output channels ordered (phases of `stride`, channel): see `conv`."""
    phases = stride[0] * stride[1] * stride[2]
    by_phase = weight.unflatten(0, (-1, phases)).transpose(0, 1).flatten(0, 1)
    return by_phase.permute(2, 3, 4, 0, 1).flatten(0, 2).contiguous()


def pack_bias(bias: Tensor, stride: tuple[int, int, int] = (1, 1, 1)) -> Tensor:
    """(C',) in the order of `pack_weight`."""
    return bias.unflatten(0, (-1, stride[0] * stride[1] * stride[2])).T.reshape(-1)


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    causal: bool = False,
    stride: tuple[int, int, int] = (1, 1, 1),
    skip: Tensor | None = None,
    out: Tensor | None = None,
    normed: Tensor | None = None,
    blocks: Blocks,
) -> None:
    """A 3x3x3 convolution of x (F, H, W, C), reshuffled to a finer grid by `stride`, plus `skip`.

    The result (F·a − (a − 1), H·b, W·c, C'/abc) goes to `out`, SiLU(PixelNorm(result)) to `normed`, or both; `out` may
    be `skip`. `weight` and `bias` are packed by `pack_weight` and `pack_bias`; channels of x are a multiple of 8.
    """
    F, H, W, C = x.shape
    _, C_out, _ = weight.shape
    some = out if out is not None else normed
    assert some is not None, "nowhere to write"
    grid = F * triton.cdiv(H, blocks.rows) * triton.cdiv(W, blocks.columns) * triton.cdiv(C_out, blocks.outputs)
    _conv_kernel[(grid,)](
        TensorDescriptor.from_tensor(x, [1, blocks.rows, blocks.columns, blocks.inputs]),
        TensorDescriptor.from_tensor(weight.view(-1, C), [blocks.outputs, blocks.inputs]),
        bias,
        some if skip is None else skip,
        some if out is None else out,
        some if normed is None else normed,
        F,
        H,
        W,
        C_IN=C,
        C_OUT=C_out,
        FRAMES_BEFORE=2 if causal else 1,
        STRIDE_T=stride[0],
        STRIDE_H=stride[1],
        STRIDE_W=stride[2],
        ADD_SKIP=skip is not None,
        WRITE_OUT=out is not None,
        WRITE_NORMED=normed is not None,
        ROWS=blocks.rows,
        COLUMNS=blocks.columns,
        OUTPUTS=blocks.outputs,
        INPUTS=blocks.inputs,
        num_warps=blocks.num_warps,
        num_stages=blocks.num_stages,
    )


def norm_silu(x: Tensor, out: Tensor | None = None) -> Tensor:
    """SiLU(PixelNorm(x)) of x (F, H, W, C), computed in fp32; C is a power of two."""
    out = torch.empty_like(x) if out is None else out
    pixels, channels = x.numel() // x.shape[-1], x.shape[-1]
    block = max(1, 4096 // channels)
    _norm_silu_kernel[(triton.cdiv(pixels, block),)](x, out, pixels, CHANNELS=channels, BLOCK=block, num_warps=4)
    return out
