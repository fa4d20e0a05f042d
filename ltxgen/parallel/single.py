"""One process, one device; of several processes each does the whole run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ltxgen.config.errors import Problem
from ltxgen.parallel.launch import LaunchConfig
from ltxgen.parallel.shape import MeshShape
from ltxgen.registry import register


@register("parallel", "single")
@dataclass(frozen=True)
class SingleConfig(LaunchConfig):
    """The whole run in this process."""

    vae_tiles: ClassVar[bool] = False  # there is nobody to share them with

    def shape(self, num_ranks: int) -> MeshShape:
        return MeshShape()

    def problems(self, path: str, num_ranks: int, num_passes: int, num_heads: Mapping[str, int]) -> list[Problem]:
        return []
