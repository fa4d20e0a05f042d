"""Linear layers in fp8 (e4m3): weights with a scale for each output channel, activations with one for each token.

Scales are amax/448, 448 being the largest e4m3 value. Activations are scaled as they come ("dynamic"); the product runs
on the fp8 units and is scaled back in fp32. An approximation: a layer's result is about 4 % off in relative L2.

M rows (tokens), K inputs, N outputs
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

FLOAT8 = torch.float8_e4m3fn
FLOAT8_MAX = torch.finfo(FLOAT8).max  # 448
# A row of zeros would have a scale of 0; below this amax a row loses precision, and its result is nothing to any sum.
SMALLEST_AMAX = 1e-12
MULTIPLE = 16  # of K and N: what the fp8 units take


class Scaled(NamedTuple):
    """values (..., K) in e4m3 times scales (..., 1) in fp32."""

    values: Tensor
    scales: Tensor


def scaled_rows(x: Tensor) -> Scaled:
    """Each row of `x` (..., K) with the scale that brings its largest magnitude to that of e4m3."""
    x = x.float()
    amax = x.abs().amax(dim=-1, keepdim=True).clamp(min=SMALLEST_AMAX)
    return Scaled((x * (FLOAT8_MAX / amax)).to(FLOAT8), amax / FLOAT8_MAX)


def plain_rows(scaled: Scaled, dtype: torch.dtype) -> Tensor:
    return (scaled.values.float() * scaled.scales).to(dtype)


class Rows(NamedTuple):
    """An activation in the forms that the layers which read it take; `dtype` is that of `plain`, there or not."""

    plain: Tensor | None
    scaled: Scaled
    dtype: torch.dtype


Activation = Tensor | Rows


class Forms(NamedTuple):
    """In which forms an activation is read."""

    plain: bool
    scaled: bool


def forms_for(*layers: nn.Module | None) -> Forms:
    """What `layers`, those that aren't None, take."""
    scaled = [isinstance(layer, Float8Linear) for layer in layers if layer is not None]
    return Forms(plain=not all(scaled), scaled=any(scaled))


def linear(layer: nn.Module, x: Activation) -> Tensor:
    """`layer` of x (..., T, K): of the form that it takes, if x has several."""
    if not isinstance(x, Rows):
        return layer(x)
    if isinstance(layer, Float8Linear):
        return layer.product(x.scaled, x.dtype)
    return layer(x.plain)


class Float8Linear(nn.Module):
    """A linear layer that holds `weight` (N, K) in e4m3 and `weight_scale` (N, 1) in fp32; `bias` stays as it was.

    On devices other than a GPU the same arithmetic is done in fp32, which is slow.
    """

    bias: nn.Parameter | None

    def __init__(self, weight: Scaled, bias: nn.Parameter | None):
        super().__init__()
        # Parameters, as a linear layer's are: what walks over a model's weights finds both.
        self.weight = nn.Parameter(weight.values, requires_grad=False)
        self.weight_scale = nn.Parameter(weight.scales, requires_grad=False)
        self.bias = bias

    @classmethod
    def of(cls, linear: nn.Linear) -> Self:
        """The layer in fp8; on the meta device if `linear` is."""
        weight = linear.weight.detach()
        if weight.is_meta:  # nothing to compute, and torch takes milliseconds to find that out
            made = Scaled(
                torch.empty_like(weight, dtype=FLOAT8), weight.new_empty((len(weight), 1), dtype=torch.float32)
            )
        else:
            made = scaled_rows(weight)
        return cls(made, linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., T, K) to (..., T, N) in its dtype."""
        return self.product(scaled_rows(x), x.dtype)

    def product(self, x: Scaled, dtype: torch.dtype) -> Tensor:
        """The same of values (..., T, K) that are scaled already."""
        rows = Scaled(x.values.flatten(0, -2), x.scales.flatten(0, -2))
        return self._product(rows, dtype).unflatten(0, x.values.shape[:-1])

    def _product(self, rows: Scaled, dtype: torch.dtype) -> Tensor:
        if rows.values.is_cuda:
            return torch._scaled_mm(
                rows.values,
                self.weight.t(),
                scale_a=rows.scales,
                scale_b=self.weight_scale.t(),
                bias=self.bias,
                out_dtype=dtype,
                use_fast_accum=True,
            )
        product = rows.values.float() @ self.weight.float().t() * rows.scales * self.weight_scale.t()
        return (product if self.bias is None else product + self.bias.float()).to(dtype)


@dataclass(frozen=True)
class Float8Layers:
    """Which linear layers run in fp8: those of the blocks that are not in `skip`, patterns of names (`*.audio_ff.*`).

    What is outside the blocks stays: few weights, and every token passes through them. So do the attentions' gates,
    whose sigmoids scale whole heads: a thousandth of the work.
    """

    skip: tuple[str, ...] = ()

    def among(self, weights: Iterable[tuple[str, tuple[int, ...]]]) -> list[str]:
        """The layers that run in fp8, of the names and weight shapes (N, K) of all."""
        return [name for name in candidates(weights) if not any(fnmatchcase(name, pattern) for pattern in self.skip)]


def candidates(weights: Iterable[tuple[str, tuple[int, ...]]]) -> list[str]:
    """The layers that can run in fp8, of the names and weight shapes (N, K) of all."""
    return [
        name
        for name, shape in weights
        if name.startswith("transformer_blocks.")
        and not name.endswith(".to_gate_logits")
        and len(shape) == 2
        and not any(size % MULTIPLE for size in shape)
    ]


def use_float8(module: nn.Module, names: Iterable[str]) -> None:
    """Replace the linear layers of these names by ones in fp8."""
    for name in names:
        parent, _, own = name.rpartition(".")
        layer = module.get_submodule(name)
        assert isinstance(layer, nn.Linear), f"{name} is no linear layer"
        setattr(module.get_submodule(parent), own, Float8Linear.of(layer))
