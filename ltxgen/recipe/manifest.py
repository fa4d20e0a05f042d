"""What a run leaves beside its video: the recipe that runs again and a manifest of how it went."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from ltxgen.artifacts.artifact import ResolvedArtifact
from ltxgen.recipe.executor import StageRecord
from ltxgen.recipe.plan import Plan
from ltxgen.runtime.clock import Began
from ltxgen.runtime.environment import versions


def write_recipe(composed: Mapping[str, Any], path: Path) -> None:
    """The composed config, complete: `ltxgen +recipe=PATH` runs it again."""
    kept = _literal({key: value for key, value in composed.items() if key != "hydra"})
    # A rerun gets a folder of its own; the rest is what this run was.
    kept = {**kept, "output": {**kept["output"], "dir": "outputs/${name}/${now:%Y-%m-%d_%H-%M-%S}"}}
    text = yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=120)
    path.write_text(f"# @package _global_\n# ltxgen +recipe=PATH/recipe.yaml\n{text}", encoding="utf-8")


def _literal(value: Any) -> Any:
    """Texts such that `${` in them is read as it stands: they were resolved already."""
    if isinstance(value, Mapping):
        return {key: _literal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_literal(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


@dataclass(frozen=True)
class WallTime:
    """Where a run's seconds went, from the start of the process (of a later job of a sweep, from its own) to now.

    `starting`: imports and composing the recipe; `planning`: finding and checking files; `loading`: what stages waited
    for; `other`: between stages and after them. `first_step`: when the first step was done, after all of these as far
    as they came before it; None where there are no steps.
    """

    starting: float
    planning: float
    loading: float
    stages: float
    other: float
    first_step: float | None

    @classmethod
    def of(
        cls, began: Began, started: float, first_step_at: float | None, records: Iterable[StageRecord], now: float
    ) -> Self:
        """Of a run whose stages `started` then, all on the clock of `time.perf_counter`."""
        records = list(records)
        loading, stages = sum(each.load_seconds for each in records), sum(each.seconds for each in records)
        first_step = None if first_step_at is None else first_step_at - began.run
        planned = started - began.planning
        return cls(began.planning - began.run, planned, loading, stages, now - started - loading - stages, first_step)

    @property
    def all(self) -> float:
        return self.starting + self.planning + self.loading + self.stages + self.other

    def __str__(self) -> str:
        first = "" if self.first_step is None else f"first step done after {self.first_step:.1f} s; "
        return (
            f"{first}{self.all:.1f} s in all: starting {self.starting:.1f}, planning {self.planning:.1f}, loading "
            f"{self.loading:.1f}, stages {self.stages:.1f}, other {self.other:.1f}"
        )


def write_manifest(plan: Plan, records: Mapping[str, StageRecord], wall: WallTime, path: Path) -> None:
    """Versions, device, artifacts with hashes, seed, where time went, and each stage's schedule, passes, seconds and
    peak memory."""
    request = plan.recipe.request
    manifest = {
        "recipe": plan.recipe.name,
        "versions": versions(plan.device),
        "runtime": {
            "device": str(plan.device),
            "dtype": str(plan.dtype).removeprefix("torch."),
            "numerics": plan.numerics.name,
            "noise": plan.recipe.runtime.noise,
            "precision": plan.recipe.precision.kind,
            "compile": "blocks" if plan.compiles else "none",
            "memory": plan.memory.forecast.policy if plan.memory else None,
        },
        "request": {
            "seed": request.seed,
            "height": request.height,
            "width": request.width,
            "num_frames": request.num_frames,
            "fps": str(request.fps),
        },
        "artifacts": {name: _artifact(artifact) for name, artifact in plan.artifacts.items()},
        "stages": {
            name: {
                **record.details,
                "seconds": round(record.seconds, 3),
                "load_seconds": round(record.load_seconds, 3),
                "loaded_ahead_seconds": round(record.loaded_ahead_seconds, 3),
                "peak_bytes": record.peak_bytes,
            }
            for name, record in records.items()
        },
        "first_step_seconds": None if wall.first_step is None else round(wall.first_step, 3),
        "seconds": round(wall.all, 3),
        "seconds_of": {
            name: round(getattr(wall, name), 3) for name in ("starting", "planning", "loading", "stages", "other")
        },
        "notes": list(plan.notes),
    }
    path.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _artifact(artifact: ResolvedArtifact) -> dict[str, Any]:
    return {
        "file": artifact.file or (artifact.path.name if artifact.path else None),
        "repo": artifact.repo,
        "revision": artifact.revision,
        "bytes": artifact.size,
        "sha256": artifact.sha256,
        "why": artifact.reason,
    }
