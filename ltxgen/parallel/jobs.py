"""Jobs of a sweep at the same time, one a process: every process is a whole run on its own device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ltxgen.config.errors import Problem
from ltxgen.parallel.cost import CostModel
from ltxgen.parallel.launch import LaunchConfig
from ltxgen.parallel.shape import Choice, MeshShape
from ltxgen.registry import register


@register("parallel", "jobs")
@dataclass(frozen=True)
class JobsConfig(LaunchConfig):
    """Each of `num_processes` takes the next job when it has none. For one machine."""

    def choose(self, num_ranks: int, cost: CostModel) -> Choice:
        return Choice(MeshShape(), vae_tiles=False)

    def problems(self, path: str, num_ranks: int, num_passes: int, num_heads: Mapping[str, int]) -> list[Problem]:
        if self.num_machines == 1:
            return []
        message = "must be 1 with parallel=jobs; Hydra's submitit launcher spreads jobs over machines"
        return [Problem(f"{path}.num_machines", self.num_machines, message)]
