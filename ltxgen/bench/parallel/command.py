"""`ltxgen bench parallel`: one launch of ranks that measures every layout, and tables of what they wrote."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ltxgen.bench.parallel.options import ParallelOptions, parse_parallel_options
from ltxgen.bench.parallel.report import left_out, sheets
from ltxgen.bench.report import report_regressions
from ltxgen.bench.results import Results
from ltxgen.config.errors import Problem, Refusal
from ltxgen.config.recipe import parse_recipe
from ltxgen.parallel.ending import exit_on_signals, is_rank
from ltxgen.parallel.launch import LaunchConfig, freeze, gpu_problems, launch
from ltxgen.runtime.environment import resolve_device
from ltxgen.stage.denoise import DenoiseConfig

_HARDWARE = ("h100", "h200")  # of conf/hardware, as GPUs call themselves
Compose = Callable[[Sequence[str]], Mapping[str, Any]]


def bench_parallel(words: Sequence[str], compose: Compose, console: Any) -> int:
    """Measure or show what `words` ask for; returns 1 if something is worse than the baseline allows, else 0.

    The first rank tells each row on stderr and writes it to `--json`; tables come last, also of a run that is cut off.
    """
    options = parse_parallel_options(words)
    against = options.bench.against
    baseline = None if against is None else Results.read(against, "--against")
    if options.shown is not None:
        results = _shown(options.shown)
        _print(results, options, console)
    else:
        results = _measured(options, compose, console)
    return 0 if baseline is None else report_regressions(results, baseline, console)


def _measured(options: ParallelOptions, compose: Compose, console: Any) -> Results:
    started = time.time()
    with exit_on_signals(), tempfile.TemporaryDirectory(prefix="ltxgen-") as scratch:
        folder = Path(scratch)
        hardware = _hardware(options.bench.overrides)
        configs = [compose([*run, *hardware]) for run in options.bench.overrides_of_runs(folder / "run")]
        config = _launch_config(configs[0], options)
        file = (options.bench.json or folder / "results.json").absolute()
        order = {
            "configs": [{**each, "cache": {"mode": "off"}} for each in configs],
            "overrides": options.bench.overrides,
            "steps": options.steps,
            "started": started,
            "budget_seconds": options.budget_seconds,
            "json": str(file),
        }
        before = file.stat().st_mtime_ns if file.exists() else None
        sha256 = freeze(order, folder / "order.json")
        try:
            launch(config, ["bench-rank", str(folder / "order.json"), sha256], folder / "logs")
        finally:  # what a run that is cut off had measured
            if file.exists() and file.stat().st_mtime_ns != before:
                _print(Results.read(file, "--json"), options, console)
        return Results.read(file, "--json")


def _hardware(overrides: Sequence[str]) -> list[str]:
    """The GPU that predictions are for: this machine's where it is known, and none was named."""
    if any(re.match(r"\+*hardware\b", word) for word in overrides) or not torch.cuda.is_available():
        return []
    name = torch.cuda.get_device_name().lower()
    return [f"hardware={known}" for known in _HARDWARE if known in name][:1]


def _launch_config(composed: Mapping[str, Any], options: ParallelOptions) -> LaunchConfig:
    """As many ranks as asked for, else as this machine has GPUs. Refusal for what can't be measured here."""
    recipe = parse_recipe(composed)
    device = resolve_device(recipe.runtime.device)
    num_gpus = torch.cuda.device_count() if device.type == "cuda" else None
    num_ranks = recipe.parallel.num_processes or num_gpus or 1
    config = LaunchConfig(num_processes=num_ranks, num_machines=recipe.parallel.num_machines)
    problems = gpu_problems(config, num_gpus)
    if num_ranks == 1:
        problems.append(Problem("parallel.num_processes", num_ranks, "must be at least 2, to compare with one"))
    if config.num_machines > 1:
        problems.append(Problem("parallel.num_machines", config.num_machines, "must be 1: one machine is measured"))
    if any(re.match(r"\+*parallel=", word) for word in options.bench.overrides):
        problems.append(Problem("parallel", recipe.parallel.kind, "every layout is measured; leave it out"))
    if device.type == "cpu" and options.bench.chooses_weights:
        message = "without a GPU the full model takes hours; try `ltxgen bench parallel model=ltx23_tiny`"
        problems.append(Problem("runtime.device", "cpu", message))
    if not any(isinstance(each, DenoiseConfig) and "video" in each.modalities for each in recipe.stages.values()):
        problems.append(Problem("bench", "parallel", "the recipe has no stage that denoises a video"))
    if is_rank():
        message = "starts its ranks itself; leave out `accelerate launch`"
        problems.append(Problem("bench", "parallel", message))
    if problems:
        raise Refusal(problems)
    return config


def _shown(path: Path) -> Results:
    results = Results.read(path, "--from")
    if "ranks" not in results.machine:
        raise Refusal([Problem("--from", str(path), "is of another `ltxgen bench`, not of `ltxgen bench parallel`")])
    return results


def _print(results: Results, options: ParallelOptions, console: Any) -> None:
    if options.markdown:
        print("\n\n".join(sheet.markdown() for sheet in sheets(results)))
    else:
        for sheet in sheets(results):
            console.print(sheet.rich())
            for note in sheet.notes:
                console.print(note)
    for line in left_out(results):
        console.print(line)
