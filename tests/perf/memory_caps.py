"""A two-stage run at full size under caps of GPU memory, random weights: seconds and peaks of each stage.

    python tests/perf/memory_caps.py [GB ...]

Needs one CUDA device of 80 GB or more and 64 GiB of host memory, and takes some three minutes. 768x512x121, 3 base
steps, bf16, `memory=auto` in one process: each cap is set with torch.cuda.set_per_process_memory_fraction. The first
run has no cap, `memory=resident`, and compiles what is not on disk; the second is what the others are compared with.
Prints each run's figures as it ends.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from ltxgen.config import compose  # noqa: E402
from ltxgen.config.recipe import parse_recipe  # noqa: E402
from ltxgen.recipe.plan import make_plan  # noqa: E402
from ltxgen.recipe.run import run_plan  # noqa: E402
from ltxgen.runtime.displays import create_progress  # noqa: E402

CAPS_GB = (24, 32, 48, 80)
STEPS = {"base": 3, "refine": 3}
WORDS = (
    "+recipe=ltx23_two_stage",
    "artifacts=synthetic",
    "cache=off",
    "request.height=512",
    "request.width=768",
    "request.num_frames=121",
    f"stages.base.steps={STEPS['base']}",
)
GIB = 2**30


@dataclass(frozen=True)
class Run:
    """What a run was and took; `stages` are those of its manifest."""

    label: str
    policy: str
    predicted: dict[str, int]
    stages: dict[str, Any]
    seconds: float

    @property
    def denoising(self) -> dict[str, float]:
        """Seconds a step."""
        return {name: self.stages[name]["seconds"] / steps for name, steps in STEPS.items()}

    @property
    def computing(self) -> float:
        return sum(stage["seconds"] for stage in self.stages.values())

    @property
    def loading(self) -> float:
        return sum(stage["load_seconds"] for stage in self.stages.values())


def run(label: str, cap_gb: float | None, *words: str) -> Run:
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1.0 if cap_gb is None else min(1.0, cap_gb * 1e9 / whole))
    with tempfile.TemporaryDirectory() as folder, create_progress() as progress:
        config = compose.compose_config([*WORDS, *words, f"output.dir={folder}/run"])
        plan = make_plan(parse_recipe(config)).require()
        assert plan.memory is not None
        started = time.perf_counter()
        manifest = json.loads((run_plan(plan, config, progress) / "manifest.json").read_text())
        seconds = time.perf_counter() - started
    forecast = plan.memory.forecast
    kept = ", ".join(f"{name} {count}" for name, count in forecast.num_kept.items())
    policy = f"{forecast.policy}{f' (blocks kept: {kept})' if kept else ''}"
    predicted = {name: peak.device for name, peak in forecast.stages.items()}
    return Run(label, policy, predicted, manifest["stages"], seconds)


def attempt(label: str, cap_gb: float | None, *words: str) -> Run | None:
    """One run that fails must not take the others' figures with it."""
    try:
        made = run(label, cap_gb, *words)
    except Exception as error:  # printed whole: this is a measuring script
        traceback.print_exc()
        traceback.clear_frames(error.__traceback__)
        made = None
    gc.collect()
    print(f"{label}: {'failed' if made is None else f'{made.policy}, {made.seconds:.1f} s'}", flush=True)
    return made


def print_peaks(made: Run) -> None:
    print(f"  {'stage':<13} {'s':>7} {'load s':>7} {'peak GiB':>9} {'predicted':>9} {'ratio':>6}")
    for name, stage in made.stages.items():
        peak, predicted = stage["peak_bytes"] / GIB, made.predicted[name] / GIB
        taken = f"{stage['seconds']:7.2f} {stage['load_seconds']:7.2f}"
        ratio = f"{predicted / peak:6.3f}" if peak else ""
        print(f"  {name:<13} {taken} {peak:9.2f} {predicted:9.2f} {ratio}")


def print_slowdown(made: Run, resident: Run) -> None:
    steps = ", ".join(
        f"{name} {seconds:.3f} s/step ({seconds / resident.denoising[name]:.2f} x)"
        for name, seconds in made.denoising.items()
    )
    ratio = made.computing / resident.computing
    peak = max(stage["peak_bytes"] for stage in made.stages.values()) / GIB
    print(
        f"  {steps}; stages {made.computing:.2f} s ({ratio:.2f} x), loading {made.loading:.2f} s, peak {peak:.2f} GiB"
    )


def main() -> None:
    caps = [int(word) for word in sys.argv[1:]] or CAPS_GB
    print(torch.cuda.get_device_name(0), torch.__version__, flush=True)
    attempt("compiling", None, "memory=resident")
    resident = attempt("resident, no cap", None, "memory=resident")
    for cap in caps:
        made = attempt(f"auto, {cap} GB", cap, "memory=auto")
        if made is not None:
            print_peaks(made)
        if made is not None and resident is not None:
            print_slowdown(made, resident)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
