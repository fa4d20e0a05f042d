"""No layer in another precision than `runtime.dtype`."""

from __future__ import annotations

from dataclasses import dataclass

from ltxgen.registry import register


@register("precision", "none")
@dataclass(frozen=True)
class NoneConfig:
    """Nothing to choose."""

    def build(self) -> None:
        return None
