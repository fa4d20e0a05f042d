"""What stands behind a convolution of the fused decoder, in plain torch; `kernels` has the same as one kernel.

Shapes: F frames, H height, W width, C channels, which lie side by side: (F, H, W, C); (a, b, c) strides, P = a·b·c.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor
from torch.nn import functional

from ltxgen.models.video_vae.convolution import PIXEL_NORM_EPS

Stride = tuple[int, int, int]


class Epilogue(Protocol):
    """Makes of a convolution's sums y (F, H, W, C·P) the result x (F·a − (a − 1), H·b, W·c, C).

    `bias` (C·P) is added, and `skip` (F, H, W, S) as often as it fits into the channels; then channels go to the finer
    grid of `stride`, as in `Upsample`. x is written to `plain`, which may be `skip` where nothing is upsampled, and
    SiLU(PixelNorm(x)) to `normed`. Both may be the inside of larger tensors. Computed in fp32, rounded once.
    """

    def __call__(
        self,
        y: Tensor,
        bias: Tensor,
        stride: Stride,
        *,
        skip: Tensor | None,
        plain: Tensor | None,
        normed: Tensor | None,
    ) -> None: ...


def torch_epilogue(
    y: Tensor, bias: Tensor, stride: Stride, *, skip: Tensor | None, plain: Tensor | None, normed: Tensor | None
) -> None:
    """See `Epilogue`."""
    x = y.float() + bias.float()
    if skip is not None:
        x = (x.unflatten(-1, (-1, skip.shape[-1])) + skip.float().unsqueeze(-2)).flatten(-2)
    x = _depth_to_space(x, stride)[stride[0] - 1 :]
    if plain is not None:
        plain.copy_(x)
    if normed is not None:
        scale = x.square().mean(dim=-1, keepdim=True).add(PIXEL_NORM_EPS).rsqrt()
        normed.copy_(functional.silu(x * scale))


def _depth_to_space(x: Tensor, stride: Stride) -> Tensor:
    """(F, H, W, C·a·b·c) -> (F·a, H·b, W·c, C); of the channels c runs fastest."""
    F, H, W, _ = x.shape
    a, b, c = stride
    return x.view(F, H, W, -1, a, b, c).permute(0, 4, 1, 5, 2, 6, 3).reshape(F * a, H * b, W * c, -1)
