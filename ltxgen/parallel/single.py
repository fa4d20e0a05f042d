"""One process, one device."""

from __future__ import annotations

from dataclasses import dataclass

from ltxgen.registry import register


@register("parallel", "single")
@dataclass(frozen=True)
class SingleConfig:
    """The whole run in this process."""
