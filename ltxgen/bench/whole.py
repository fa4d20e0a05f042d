"""A whole run: loading, every stage and writing, and how much of the wall time the stages account for."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from ltxgen.bench.options import RUN
from ltxgen.bench.results import Entry
from ltxgen.recipe.plan import Plan
from ltxgen.recipe.run import run_plan
from ltxgen.runtime.displays import create_progress


def size_of(plan: Plan) -> str:
    request = plan.recipe.request
    return f"{request.width}x{request.height}x{request.num_frames}"


def time_run(plan: Plan, composed: Mapping[str, Any]) -> Entry:
    """Run the plan once into its output folder. Seconds and peak memory of the stages are those of its manifest."""
    started = time.perf_counter()
    with create_progress() as progress:
        folder = run_plan(plan, composed, progress)
    seconds = time.perf_counter() - started
    stages = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["stages"]
    kept = ("seconds", "load_seconds", "peak_bytes")
    computing, loading = (sum(stage[name] for stage in stages.values()) for name in kept[:2])
    return Entry(
        RUN,
        size_of(plan),
        1000 * seconds,
        peak_bytes=max(stage["peak_bytes"] for stage in stages.values()) if plan.device.type == "cuda" else None,
        details={
            "stages": {name: {key: stage[key] for key in kept} for name, stage in stages.items()},
            "computing_seconds": computing,
            "loading_seconds": loading,
            "rest_seconds": seconds - computing - loading,
        },
    )
