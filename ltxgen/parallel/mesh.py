"""A mesh of ranks: guidance passes, ring blocks and Ulysses heads, and products of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ltxgen.config.errors import Problem
from ltxgen.config.schema import PositiveInt
from ltxgen.parallel.cost import CostModel
from ltxgen.parallel.launch import LaunchConfig
from ltxgen.parallel.shape import Choice, MeshShape, divisors
from ltxgen.registry import register


@register("parallel", "mesh")
@dataclass(frozen=True)
class MeshConfig(LaunchConfig):
    """Ranks along each axis; one of them may be null: the ranks that the others leave.

    `weights` of the transformer and of the text encoder: all on every rank, or a part on each of all ranks. With
    `vae_tiles` the tiles of a decoded video are dealt to all ranks, without it the first one decodes them all.
    """

    guidance: PositiveInt | None = 1
    ulysses: PositiveInt | None = 1
    ring: PositiveInt | None = 1
    weights: Literal["replicated", "sharded"] = "replicated"
    vae_tiles: bool = True

    def shape(self, num_ranks: int) -> MeshShape:
        """The mesh of `num_ranks` ranks; only after `problems` has found none."""
        return MeshShape(**self._degrees(num_ranks))

    def choose(self, num_ranks: int, cost: CostModel) -> Choice:
        return Choice(self.shape(num_ranks), self.weights == "sharded", self.vae_tiles)

    def problems(self, path: str, num_ranks: int, num_passes: int, num_heads: Mapping[str, int]) -> list[Problem]:
        """What is wrong with it on `num_ranks` ranks.

        `num_passes` is the most that any step of any stage has; `num_heads` counts the heads of each stream,
        empty where a checkpoint isn't there to say.
        """
        open_axes = [name for name, degree in self._given.items() if degree is None]
        if len(open_axes) > 1:
            message = f"only one axis can be left open, and {' and '.join(open_axes)} are; give all but one a number"
            return [Problem(f"{path}.{open_axes[-1]}", None, message)]
        if wrong := self._product_problem(path, num_ranks, open_axes):
            return [wrong]
        degrees, problems = self._degrees(num_ranks), []
        if self.weights == "sharded" and num_ranks == 1:
            message = "needs several processes to share them; set parallel.num_processes, or make this replicated"
            problems.append(Problem(f"{path}.weights", self.weights, message))
        if degrees["guidance"] > num_passes:
            allowed = f"must be at most {num_passes}, the passes of a guided step in this recipe"
            problems.append(Problem(f"{path}.guidance", degrees["guidance"], f"{allowed}; give the rest to ulysses"))
        common = math.gcd(*num_heads.values())  # 0 without streams, which every degree divides
        if common % degrees["ulysses"]:
            heads = " and ".join(f"{count} {stream}" for stream, count in num_heads.items())
            valid = ", ".join(map(str, divisors(common)))
            message = f"must divide this transformer's {heads} heads: one of {valid}; give the rest to ring"
            problems.append(Problem(f"{path}.ulysses", degrees["ulysses"], message))
        return problems

    def _product_problem(self, path: str, num_ranks: int, open_axes: list[str]) -> Problem | None:
        given = {name: degree for name, degree in self._given.items() if degree is not None}
        product = math.prod(given.values())
        if num_ranks % product == 0 and (open_axes or product == num_ranks):
            return None
        named = " * ".join(f"{name} {degree}" for name, degree in given.items() if degree > 1 or not open_axes)
        must = f"must divide the {num_ranks} processes" if open_axes else f"must equal the {num_ranks} processes"
        where = next((name for name, degree in given.items() if degree > 1), "guidance")
        message = f"{named} = {product} {must}; leave one axis null to take the rest, or change num_processes"
        return Problem(f"{path}.{where}", given[where], message)

    @property
    def _given(self) -> dict[str, int | None]:
        return {"guidance": self.guidance, "ulysses": self.ulysses, "ring": self.ring}

    def _degrees(self, num_ranks: int) -> dict[str, int]:
        rest = num_ranks // math.prod(degree for degree in self._given.values() if degree is not None)
        return {name: rest if degree is None else degree for name, degree in self._given.items()}
