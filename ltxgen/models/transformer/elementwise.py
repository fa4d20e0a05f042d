"""What a block does between its products and attentions, in plain torch; `fused` has the same, a kernel a step.

B batch, T tokens, H heads, D head dim, C width, K rows
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltxgen.models.transformer.adaln import Modulation, modulate, modulation_rows
from ltxgen.models.transformer.float8 import Activation, Forms, linear
from ltxgen.models.transformer.perturbation import Keep
from ltxgen.models.transformer.rope import RopeType, RotaryTable, rotate

Row = Any
"""A row of modulation as `Elementwise.rows` gives it: a tensor (B, T or 1, C), or what a kernel makes that of."""


class Residual(NamedTuple):
    """A stream x (B, T, C), and what a branch adds to it and the next reader has yet to add.

    gate: None is 1. keep: which samples it is added to, not False.
    """

    x: Tensor
    update: Tensor | None = None
    gate: Row | None = None
    keep: Keep = True


class Wanted(NamedTuple):
    """A modulation of a stream, None leaving it as it is, and the forms in which it is read."""

    shift: Row | None
    scale: Row | None
    forms: Forms


class Heads(NamedTuple):
    """Queries or keys (B, T, H·D) out of their product, and the norm over all heads that they get."""

    x: Tensor
    norm: nn.RMSNorm


class Elementwise(Protocol):
    def rows(self, table: Tensor, modulation: Modulation) -> Sequence[Row]:
        """The K rows of a block's learned `table` (K, C), each plus the timesteps'."""

    def added(self, stream: Residual) -> Tensor: ...

    def normed(self, stream: Residual, eps: float, *wanted: Wanted) -> tuple[Tensor, Sequence[Activation]]:
        """The stream with everything added, and each modulation (at most two, of the same tables) of its RMS norm."""

    def modulated(self, x: Tensor, wanted: Wanted) -> Activation: ...

    def heads(
        self, projected: Sequence[Heads], num_heads: int, rotary: RotaryTable | None, rope_type: RopeType
    ) -> Sequence[Tensor]:
        """Each normed and rotated, as (B, H, T, D), which is (B, T, H, D) in memory. May take the memory of x."""

    def gated(self, out: Tensor, logits: Tensor, forms: Forms) -> Activation:
        """Heads (B, T, H, D) times twice the sigmoid of their logits (B, T, H), as (B, T, H·D)."""

    def gelu_linear(self, layer: nn.Module, x: Activation, forms: Forms) -> Activation:
        """The tanh form of GELU of `layer` of x."""


class TorchElementwise:
    """See `Elementwise`. Each step rounds to the dtype of the stream; tensors are plain, whatever the forms."""

    def rows(self, table: Tensor, modulation: Modulation) -> Sequence[Row]:
        return modulation_rows(table, modulation)

    def added(self, stream: Residual) -> Tensor:
        x, update, gate, keep = stream
        if update is None:
            return x
        total = x + (update if gate is None else gate * update)
        return torch.where(keep, total, x) if isinstance(keep, Tensor) else total

    def normed(self, stream: Residual, eps: float, *wanted: Wanted) -> tuple[Tensor, Sequence[Activation]]:
        x = self.added(stream)
        normed = F.rms_norm(x, x.shape[-1:], eps=eps)
        return x, [self.modulated(normed, each) for each in wanted]

    def modulated(self, x: Tensor, wanted: Wanted) -> Activation:
        shift, scale, _ = wanted
        return x if shift is None or scale is None else modulate(x, shift, scale)

    def heads(
        self, projected: Sequence[Heads], num_heads: int, rotary: RotaryTable | None, rope_type: RopeType
    ) -> Sequence[Tensor]:
        # No function in this one: torch.compile would keep what it closes over, and with it the weights.
        normed = [norm(x).unflatten(-1, (num_heads, -1)) for x, norm in projected]
        turned = normed if rotary is None else [rotate(heads, rotary, rope_type) for heads in normed]
        return [heads.transpose(1, 2) for heads in turned]

    def gated(self, out: Tensor, logits: Tensor, forms: Forms) -> Activation:
        # Twice the sigmoid: a logit of zero is neutral.
        return (out * (2 * logits.sigmoid())[..., None]).flatten(2)

    def gelu_linear(self, layer: nn.Module, x: Activation, forms: Forms) -> Activation:
        return F.gelu(linear(layer, x), approximate="tanh")


TORCH = TorchElementwise()


def gelu_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """gelu(x @ weight.T + bias) of x (B, T, C), weight (C', C), bias (C',): where cuBLAS can, GELU within the product.

    That spares writing and reading the widest tensor of a block, and rounds once instead of twice. bf16 alone, whose
    rounding hides that the product's tanh is an approximation; elsewhere the product has no GELU, or the exact one.
    """
    if bias is None or not x.is_cuda or x.dtype is not torch.bfloat16 or not _HAS_GELU_PRODUCT:
        return F.gelu(F.linear(x, weight, bias), approximate="tanh")
    rows = torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True)
    return rows.unflatten(0, x.shape[:-1])


# Private in torch, there since 1.13. Not on AMD, where it is untried.
_HAS_GELU_PRODUCT = hasattr(torch, "_addmm_activation") and torch.version.cuda is not None
