"""What a run leaves beside its video: a manifest of how it went. `lock` writes the recipe that runs again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ltxgen.artifacts.artifact import ResolvedArtifact
from ltxgen.recipe.executor import StageRecord
from ltxgen.recipe.plan import Plan
from ltxgen.runtime.clock import Began
from ltxgen.runtime.environment import versions


@dataclass(frozen=True)
class WallTime:
    """Where a run's seconds went, from the start of the process (in a sweep or from Python, of the run) to now.

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


def write_manifest(
    plan: Plan, records: Mapping[str, StageRecord], wall: WallTime, request: Mapping[str, Any], path: Path
) -> None:
    """What the run was made from, where time went, and each stage's schedule, passes, seconds and peak memory.

    `request` is the request as recipe.yaml has it.
    """
    manifest = {
        **made_from(plan),
        "stages": {
            name: {
                **record.details,
                "from": record.source,
                "key": record.key,
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
    for name in ("prompt", "original_prompt"):
        manifest["request"][name] = request.get(name)
    for name, artifact in plan.artifacts.items():
        manifest["artifacts"][name]["why"] = artifact.reason
    manifest["runtime"]["memory"] = plan.memory.forecast.policy if plan.memory else None
    path.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def made_from(plan: Plan) -> dict[str, Any]:
    """Versions, device, artifacts with hashes, seed and sizes: equal for runs that give the same result."""
    request = plan.recipe.request
    return {
        "recipe": plan.recipe.name,
        "versions": versions(plan.device),
        "runtime": {
            "device": str(plan.device),
            "dtype": str(plan.dtype).removeprefix("torch."),
            "numerics": plan.numerics.name,
            "noise": plan.recipe.runtime.noise,
            "precision": plan.recipe.precision.kind,
            "kernels": "fused" if plan.fused else "plain",
            "compile": "blocks" if plan.compiles else "none",
        },
        "request": {
            "seed": request.seed,
            "height": request.height,
            "width": request.width,
            "num_frames": request.num_frames,
            "fps": str(request.fps),
        },
        "artifacts": {name: _artifact(artifact) for name, artifact in plan.artifacts.items()},
    }


def objective(folder: Path, name: str) -> float | None:
    """The number called `stages.base.seconds`, for example, in the manifest of a run; None where it isn't there."""
    value = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, int | float) else None


def _artifact(artifact: ResolvedArtifact) -> dict[str, Any]:
    return {
        "file": artifact.file or (artifact.path.name if artifact.path else None),
        "repo": artifact.repo,
        "revision": artifact.revision,
        "bytes": artifact.size,
        "sha256": artifact.sha256,
    }
