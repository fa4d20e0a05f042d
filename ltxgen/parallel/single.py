"""One process, one device; of several processes each does the whole run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ltxgen.config.errors import Problem
from ltxgen.parallel.cost import CostModel
from ltxgen.parallel.launch import LaunchConfig
from ltxgen.parallel.shape import Choice, MeshShape
from ltxgen.registry import register


@register("parallel", "single")
@dataclass(frozen=True)
class SingleConfig(LaunchConfig):
    """The whole run in this process."""

    def choose(self, num_ranks: int, cost: CostModel) -> Choice:
        return Choice(MeshShape(), vae_tiles=False)

    def problems(self, path: str, num_ranks: int, num_passes: int, num_heads: Mapping[str, int]) -> list[Problem]:
        return []
