"""The fused decoder's kernel against plain torch, element by element: what the test and the measuring script share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ltxgen.models.video_vae.epilogue import Epilogue, Stride, torch_epilogue
from ltxgen.models.video_vae.kernels import triton_epilogue

# Two results of the same fp32 arithmetic differ in its last bits, and after rounding by one step of the dtype at most.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}


@dataclass(frozen=True)
class Case:
    """One way the decoder uses the kernel, on F, H, W pixels of C·P channels; skip: its channels."""

    size: tuple[int, int, int, int]
    stride: Stride = (1, 1, 1)
    skip: int | None = None
    plain: bool = True
    normed: bool = True
    edge: int = 0
    in_place: bool = False


CASES = {
    "norm, 128 channels": Case((3, 5, 47, 128), plain=False),
    "norm, 1024 channels, one pixel": Case((1, 1, 1, 1024), plain=False),
    "norm, 24 channels": Case((2, 3, 33, 24), plain=False),
    "bias, 256 channels": Case((2, 7, 19, 256), normed=False),
    "skip, 128 channels, in place": Case((3, 5, 47, 128), skip=128, in_place=True),
    "skip, 512 channels, in place": Case((3, 5, 9, 512), skip=512, in_place=True),
    "skip, 512 channels, plain is padded": Case((3, 5, 9, 512), skip=512, normed=False),
    "space x 2": Case((3, 5, 13, 512), (1, 2, 2)),
    "time x 2": Case((3, 5, 13, 512), (2, 1, 1)),
    "all x 2": Case((3, 5, 7, 4096), (2, 2, 2)),
    "all x 2, one frame": Case((1, 3, 3, 4096), (2, 2, 2)),
    "all x 2, residual, reflected": Case((3, 5, 7, 4096), (2, 2, 2), skip=1024, edge=1),
}


def worst_error(case: Case, device: str = "cuda") -> str:
    """Both dtypes of the case as a line; raises AssertionError where an element is off by more than rounding."""
    found = {dtype: compare(case, dtype, device) for dtype in (torch.float32, torch.bfloat16)}
    line = ", ".join(f"{str(dtype).removeprefix('torch.')} {error:.1e}" for dtype, error in found.items())
    wrong = [str(dtype) for dtype, error in found.items() if not error <= TOLERANCE[dtype]]
    assert not wrong, f"the worst element, relative to max(1, itself): {line}"
    return f"worst element {line}"


def compare(case: Case, dtype: torch.dtype, device: str) -> float:
    """The largest difference of an element, relative to max(1, the element); also of those that must stay untouched."""
    ours, wanted = (_run(case, dtype, device, epilogue) for epilogue in (triton_epilogue, torch_epilogue))
    differences = [
        ((a.double() - b.double()).abs() / b.double().abs().clamp(min=1)).max().item()
        for a, b in zip(ours, wanted, strict=True)
    ]
    return max(differences)


def _run(case: Case, dtype: torch.dtype, device: str, epilogue: Epilogue) -> list[Tensor]:
    """The whole tensors that plain and normed results are written into; what stands around them is 7."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    F, H, W, C = case.size
    a, b, c = case.stride
    shape = (F * a - (a - 1), H * b, W * c, C // math.prod(case.stride))
    y, bias = draw(*case.size), draw(C)
    written = []

    def inside(values: Tensor) -> Tensor:
        edge, (F, H, W, C) = case.edge, values.shape
        whole = values.new_full((F + 2, H + 2 * edge, W + 2 * edge, C), 7)
        view = whole[1 : F + 1, edge : edge + H, edge : edge + W]
        view.copy_(values)
        written.append(whole)
        return view

    skip = None if case.skip is None else inside(draw(F, H, W, case.skip))
    plain = skip if case.in_place else inside(y.new_zeros(shape)) if case.plain else None
    normed = inside(y.new_zeros(shape)) if case.normed else None
    epilogue(y, bias, case.stride, skip=skip, plain=plain, normed=normed)
    return written
