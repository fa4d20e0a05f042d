"""What a run leaves beside its video: the recipe that runs again and a manifest of how it went."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ltxgen.artifacts.artifact import ResolvedArtifact
from ltxgen.recipe.executor import StageRecord
from ltxgen.recipe.plan import Plan
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


def write_manifest(plan: Plan, records: Mapping[str, StageRecord], seconds: float, path: Path) -> None:
    """Versions, device, artifacts with hashes, seed, and each stage's schedule, passes, seconds and peak memory."""
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
                "peak_bytes": record.peak_bytes,
            }
            for name, record in records.items()
        },
        "seconds": round(seconds, 3),
        "notes": list(plan.notes),
    }
    path.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


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
        "why": artifact.reason,
    }
