"""The fused decoder's Triton kernel. Imported where the model runs on a GPU only: elsewhere there may be no Triton."""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from ltxgen.models.video_vae import convolution
from ltxgen.models.video_vae.epilogue import Stride

PIXEL_NORM_EPS = tl.constexpr(convolution.PIXEL_NORM_EPS)
# Values that a program holds: 32 in each thread of 4 warps.
_VALUES = 4096
_SIZES = ["HEIGHT", "WIDTH", "SKIP_F", "SKIP_H", "PLAIN_F", "PLAIN_H", "NORMED_F", "NORMED_H"]


# One compiled kernel serves videos of every size.
@triton.jit(do_not_specialize=_SIZES)
def _epilogue_kernel(
    y_ptr,
    bias_ptr,
    skip_ptr,
    plain_ptr,
    normed_ptr,
    HEIGHT,  # of y
    WIDTH,
    SKIP_F,  # pixels from frame to frame, and from row to row
    SKIP_H,
    PLAIN_F,
    PLAIN_H,
    NORMED_F,
    NORMED_H,
    CHANNELS: tl.constexpr,
    SKIP_CHANNELS: tl.constexpr,
    STRIDE_T: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    ADD_SKIP: tl.constexpr,
    WRITE_PLAIN: tl.constexpr,
    WRITE_NORMED: tl.constexpr,
    COLUMNS: tl.constexpr,
    LANES: tl.constexpr,
):
    # A program makes neighbours in one row of the result, with all their channels.
    blocks = tl.cdiv(WIDTH * STRIDE_W, COLUMNS)
    pid = tl.program_id(0)
    column = pid % blocks * COLUMNS + tl.arange(0, COLUMNS)[:, None]
    row = pid // blocks % (HEIGHT * STRIDE_H)
    frame = (pid // blocks // (HEIGHT * STRIDE_H)).to(tl.int64)  # pixels of a video times channels pass 2^31
    channel = tl.arange(0, LANES)[None, :]
    inside = (column < WIDTH * STRIDE_W) & (channel < CHANNELS)

    # Where that stands in y. Told apart where nothing is upsampled, so that the compiler sees neighbours there.
    PHASES: tl.constexpr = STRIDE_T * STRIDE_H * STRIDE_W
    if PHASES == 1:
        y_frame, y_row, y_column, y_channel = frame, row, column, channel
    else:
        late = frame + STRIDE_T - 1  # where time doubles, the first frame is dropped
        y_frame, y_row, y_column = late // STRIDE_T, row // STRIDE_H, column // STRIDE_W
        phase = ((late % STRIDE_T).to(tl.int32) * STRIDE_H + row % STRIDE_H) * STRIDE_W + column % STRIDE_W
        y_channel = channel * PHASES + phase
    y_base = (y_frame * HEIGHT + y_row) * WIDTH * (CHANNELS * PHASES)
    x = tl.load(y_ptr + y_base + (y_column * (CHANNELS * PHASES) + y_channel), mask=inside, other=0.0).to(tl.float32)
    x += tl.load(bias_ptr + y_channel, mask=channel < CHANNELS, other=0.0).to(tl.float32)
    if ADD_SKIP:
        skip_channel = y_channel
        if SKIP_CHANNELS < CHANNELS * PHASES:
            skip_channel = y_channel % SKIP_CHANNELS
        skip_base = (y_frame * SKIP_F + y_row * SKIP_H) * SKIP_CHANNELS
        skip = tl.load(skip_ptr + skip_base + (y_column * SKIP_CHANNELS + skip_channel), mask=inside, other=0.0)
        x += skip.to(tl.float32)

    place = column * CHANNELS + channel
    if WRITE_PLAIN:
        plain_base = (frame * PLAIN_F + row * PLAIN_H) * CHANNELS
        tl.store(plain_ptr + plain_base + place, x.to(plain_ptr.dtype.element_ty), mask=inside)
    if WRITE_NORMED:
        normed = x * tl.rsqrt(tl.sum(x * x, axis=1, keep_dims=True) / CHANNELS + PIXEL_NORM_EPS)
        normed = normed / (1 + tl.exp(-normed))
        normed_base = (frame * NORMED_F + row * NORMED_H) * CHANNELS
        tl.store(normed_ptr + normed_base + place, normed.to(normed_ptr.dtype.element_ty), mask=inside)


def triton_epilogue(
    y: Tensor, bias: Tensor, stride: Stride, *, skip: Tensor | None, plain: Tensor | None, normed: Tensor | None
) -> None:
    """See `Epilogue`."""
    F, H, W, C = y.shape
    a, b, c = stride
    channels = C // math.prod(stride)
    assert y.is_contiguous(), "the convolution left channels-last"
    lanes = triton.next_power_of_2(channels)
    columns = max(1, _VALUES // lanes)
    _epilogue_kernel[((F * a - (a - 1)) * H * b * triton.cdiv(W * c, columns),)](
        y,
        bias,
        y if skip is None else skip,
        y if plain is None else plain,
        y if normed is None else normed,
        H,
        W,
        *_pixel_strides(skip),
        *_pixel_strides(plain),
        *_pixel_strides(normed),
        CHANNELS=channels,
        SKIP_CHANNELS=0 if skip is None else skip.shape[-1],
        STRIDE_T=a,
        STRIDE_H=b,
        STRIDE_W=c,
        ADD_SKIP=skip is not None,
        WRITE_PLAIN=plain is not None,
        WRITE_NORMED=normed is not None,
        COLUMNS=columns,
        LANES=lanes,
        num_warps=4,
    )


def _pixel_strides(x: Tensor | None) -> tuple[int, int]:
    """From frame to frame and from row to row. In pixels, from which the compiler sees that addresses are aligned."""
    if x is None:
        return 0, 0
    channels = x.shape[-1]
    assert x.stride()[2:] == (channels, 1), "pixels of a row and their channels lie side by side"
    return x.stride(0) // channels, x.stride(1) // channels
