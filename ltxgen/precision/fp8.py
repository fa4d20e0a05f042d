"""The transformer's large linear layers in fp8, with scales that follow the activations: an approximation."""

from __future__ import annotations

from dataclasses import dataclass

from ltxgen.models.transformer.float8 import Float8Layers
from ltxgen.registry import register


@register("precision", "fp8")
@dataclass(frozen=True)
class Fp8Config:
    """`skip`: patterns (`*`, `?`, `[...]`) of names of layers that stay in `runtime.dtype`."""

    skip: tuple[str, ...]

    def build(self) -> Float8Layers:
        return Float8Layers(self.skip)
