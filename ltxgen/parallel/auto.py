"""The mesh and the place of the weights, chosen by predicted time among those that fit the GPUs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from ltxgen.config.errors import Problem
from ltxgen.parallel.cost import CostModel, common_heads
from ltxgen.parallel.launch import LaunchConfig
from ltxgen.parallel.shape import Choice, MeshShape, divisors
from ltxgen.registry import register

OTHERS_TOLD = 3


@register("parallel", "auto")
@dataclass(frozen=True)
class AutoConfig(LaunchConfig):
    """One process where there is one, else the mesh with the shortest predicted denoising of all stages together."""

    def choose(self, num_ranks: int, cost: CostModel) -> Choice:
        """Weights stay whole where that fits; sharding them costs exchange and is for those that don't fit."""
        if num_ranks == 1:
            return Choice(MeshShape())
        num_passes = max((len(step) for work in cost.stages.values() for step in work.steps), default=1)
        candidates = meshes(num_ranks, num_passes, common_heads(cost.config))
        whole = [shape for shape in candidates if cost.fits(shape)]
        seconds = {shape: cost.run_seconds(shape, sharded=not whole) for shape in whole or candidates}
        of_gpus = dataclasses.replace(cost, launched=False)  # where the host sets the pace of several, the least busy
        first, *others = sorted(seconds, key=lambda shape: (seconds[shape], of_gpus.run_seconds(shape, not whole)))
        told = ", ".join(f"{shape} {seconds[shape]:.1f} s" for shape in others[:OTHERS_TOLD])
        on = f"{num_ranks} {cost.hardware.name}"
        why = f"{first}: {seconds[first]:.1f} s of denoising predicted on {on}" + (f"; {told}" if told else "")
        return Choice(first, not whole, why=(why, _weights(cost, first, whole=bool(whole))))

    def problems(self, path: str, num_ranks: int, num_passes: int, num_heads: Mapping[str, int]) -> list[Problem]:
        return []


def meshes(num_ranks: int, num_passes: int, num_heads: int) -> list[MeshShape]:
    """Every mesh of so many ranks: guidance up to the passes of a step, Ulysses where it divides the heads."""
    return [
        MeshShape(guidance, num_ranks // guidance // ulysses, ulysses)
        for guidance in divisors(num_ranks)
        if guidance <= num_passes
        for ulysses in divisors(num_ranks // guidance)
        if num_heads % ulysses == 0
    ]


def _weights(cost: CostModel, shape: MeshShape, *, whole: bool) -> str:
    replicated, has = cost.memory_bytes(shape) / 2**30, cost.hardware.memory_gib
    if whole:
        return f"weights whole on every rank: the transformer takes {replicated:.1f} of {has:.0f} GiB"
    each = cost.memory_bytes(shape, sharded=True) / 2**30
    return f"weights sharded: {each:.1f} GiB a rank, whole {replicated:.1f}, and a GPU has {has:.0f} GiB"
