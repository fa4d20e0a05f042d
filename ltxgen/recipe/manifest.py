"""What a run leaves beside its video: a manifest of how it went. `lock` writes the recipe that runs again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltxgen.artifacts.artifact import ResolvedArtifact
from ltxgen.recipe.executor import StageRecord
from ltxgen.recipe.plan import Plan
from ltxgen.runtime.environment import versions


def write_manifest(plan: Plan, records: Mapping[str, StageRecord], seconds: float, path: Path) -> None:
    """What the run was made from, and each stage's schedule, passes, seconds and peak memory."""
    manifest = {
        **made_from(plan),
        "stages": {
            name: {
                **record.details,
                "from": record.source,
                "key": record.key,
                "seconds": round(record.seconds, 3),
                "load_seconds": round(record.load_seconds, 3),
                "peak_bytes": record.peak_bytes,
            }
            for name, record in records.items()
        },
        "seconds": round(seconds, 3),
        "notes": list(plan.notes),
    }
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
