"""What an attention backend is.

Shapes: B batch, H heads, Tq query tokens, Tk key tokens, D head dim.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class AttentionFunction(Protocol):
    """softmax(q kᵀ / sqrt(D) + mask) v for q (B,H,Tq,D), k and v (B,H,Tk,D) -> (B,H,Tq,D).

    `mask` is None or additive and broadcastable to (B,H,Tq,Tk).
    """

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor: ...


class AttentionConfig(Protocol):
    """A backend's YAML: builds the function that every attention role of the transformer uses."""

    def build(self) -> AttentionFunction: ...
