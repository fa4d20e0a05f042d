"""`ltxgen bench`: the cases that its words pick, one after another."""

from __future__ import annotations

import dataclasses
import gc
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltxgen.artifacts.load import load_component
from ltxgen.bench import peers, report
from ltxgen.bench.ceilings import Ceilings, measure_ceilings
from ltxgen.bench.conditions import Conditions
from ltxgen.bench.decoding import STAGES, time_decoding
from ltxgen.bench.options import CASES, FORWARD, GUIDED, REFINE, RUN, Options, parse_options
from ltxgen.bench.parallel.command import bench_parallel
from ltxgen.bench.results import Entry, Results
from ltxgen.bench.steps import case_of, stages_by_shape, time_steps
from ltxgen.bench.whole import size_of, time_run
from ltxgen.config.errors import Problem, Refusal
from ltxgen.config.recipe import parse_recipe
from ltxgen.models.transformer import Transformer, TransformerConfig
from ltxgen.recipe.plan import Plan, make_plan
from ltxgen.recipe.run import NO_FOLDER, parts_of
from ltxgen.runtime.displays import create_progress
from ltxgen.runtime.environment import set_threads, use_full_float32, versions
from ltxgen.stage.denoise import Denoise
from ltxgen.stage.protocol import RunContext

Composed = Mapping[str, Any]
PARALLEL = "parallel"  # the first word of the benchmark of ranks, which has words of its own


def bench(words: Sequence[str], compose: Callable[[Sequence[str]], Composed], console: Any) -> int:
    """Measure what `words` ask for; returns 1 if something is worse than the baseline allows, else 0.

    `compose` makes a config of overrides. Progress goes to stderr, tables to `console`, figures to `--json` as they
    come.
    """
    if words[:1] == [PARALLEL]:
        return bench_parallel(words[1:], compose, console)
    options = parse_options(words)
    baseline = None if options.against is None else Results.read(options.against, "--against")
    with tempfile.TemporaryDirectory(prefix="ltxgen-") as scratch:
        runs = options.overrides_of_runs(Path(scratch) / "run")
        # Every stage of a whole run is to be timed, none to be taken from an earlier one.
        composed = [{**compose(each), "cache": {"mode": "off"}} for each in runs]
        plans = [make_plan(parse_recipe(config), _log).require() for config in composed]
        cases = _cases(options, plans)
        machine = versions(plans[0].device)
        if with_peer := _has_peer(options):
            machine["diffusers"] = peers.version()
        results = Results(machine, options.overrides)
        try:
            for entry in _measure(cases, with_peer, plans, composed, results):
                results.entries.append(entry)
                _log(f"{entry.name}: {entry.ms:.1f} ms")
                if options.json is not None:
                    results.write(options.json)
        finally:  # what a run that is cut off had measured
            if results.entries:
                console.print(report.figures(results))
    for line in (*report.ceiling_lines(results), *report.run_lines(results)):
        console.print(line)
    return 0 if baseline is None else report.report_regressions(results, baseline, console)


def _cases(options: Options, plans: Sequence[Plan]) -> tuple[str, ...]:
    """The picked cases. Refusal for what can't be measured here."""
    stages = [stage for plan in plans for stage in plan.stages.values()]
    there = {RUN}
    for stage in stages:
        if isinstance(stage, Denoise):
            there |= {FORWARD, case_of(stage)}
        there.update(case for case, kind in STAGES.items() if isinstance(stage, kind))
    problems = [
        Problem("bench", case, f"the recipe has no stage for it, only for {', '.join(sorted(there))}")
        for case in options.cases
        if case not in there
    ]
    if plans[0].device.type == "cpu" and options.chooses_weights:
        message = "without a GPU the full model takes hours; try `ltxgen bench model=ltx23_tiny request=demo`"
        problems.append(Problem("runtime.device", "cpu", message))
    ranks = plans[0].recipe.parallel.num_processes
    if (ranks or 1) > 1:
        problems.append(Problem("parallel.num_processes", ranks, "bench measures one process; leave `parallel` out"))
    if options.peer == "diffusers" and (why := peers.missing()):
        problems.append(Problem("--peer", options.peer, f"{why}; `pip install diffusers`, or leave --peer out"))
    if problems:
        raise Refusal(problems)
    return tuple(case for case in CASES if case in (options.cases or there))


def _measure(
    cases: Sequence[str], with_peer: bool, plans: Sequence[Plan], composed: Sequence[Composed], results: Results
) -> Iterator[Entry]:
    set_threads(plans[0].recipe.runtime.threads)
    use_full_float32()
    if any(case != RUN for case in cases):
        with create_progress("quiet").stage("bench") as progress:
            context = RunContext(NO_FOLDER, progress, lambda name, tensor: None, lambda name, fact: None)
            ceilings = _ceilings(plans)
            results.ceilings = dataclasses.asdict(ceilings)
            yield from _time_parts(cases, plans, Conditions(ceilings, with_peer, context, _log))
    for plan, config in zip(plans, composed, strict=True):
        if RUN in cases:
            _log(f"{RUN} {size_of(plan)}")
            yield time_run(plan, config)


@torch.inference_mode()
def _ceilings(plans: Sequence[Plan]) -> Ceilings:
    _log("ceilings")
    config = TransformerConfig.from_metadata(plans[0].artifacts["checkpoint"].config)
    tokens = [shape.video.num_tokens for shape in stages_by_shape(plans)]
    return measure_ceilings(config, tokens, plans[0].device, plans[0].dtype, _log)


@torch.inference_mode()
def _time_parts(cases: Sequence[str], plans: Sequence[Plan], conditions: Conditions) -> Iterator[Entry]:
    """The cases that need one component or two, which are loaded for them alone and freed after them."""
    if set(cases) & {FORWARD, GUIDED, REFINE}:
        yield from _time_transformer(cases, plans, conditions)
    for case in (each for each in cases if each in STAGES):
        for plan in plans:
            _log(f"{case} {size_of(plan)}")
            yield from time_decoding(case, plan, conditions)


def _time_transformer(cases: Sequence[str], plans: Sequence[Plan], conditions: Conditions) -> Iterator[Entry]:
    """One transformer for all shapes. LoRAs are left out: fused, they change no shape."""
    shapes = stages_by_shape(plans)
    plan = max(plans, key=lambda each: each.recipe.request.height * each.recipe.request.width)  # chooses attention
    request = dataclasses.replace(next(iter(shapes.values()))[0].parts[0], loras=())
    _log("loading the transformer")
    source = parts_of(plan, _log)
    transformer = source.build(request)
    forwards: dict[str, peers.Forward] = {}
    if conditions.with_peer:
        forwards = peers.diffusers_forwards(transformer.config, _plain_weights(transformer, plan), plan.device)
    for shape, stages in shapes.items():
        if FORWARD in cases or any(case_of(stage) in cases for stage in stages):
            _log(f"{shape}: {shape.video.num_tokens} video tokens, {shape.audio.num_tokens} audio tokens")
            yield from time_steps(shape, stages, cases, transformer, forwards, conditions)
    del transformer, forwards
    gc.collect()  # compiled modules hold themselves, and with them the weights
    source.released([request.name])


def _has_peer(options: Options) -> bool:
    why = "--peer none" if options.peer == "none" else peers.missing()
    if why is not None:
        _log(f"no peer: {why}")
    return why is None


def _plain_weights(transformer: Transformer, plan: Plan) -> Mapping[str, Tensor]:
    """The transformer's own tensors; where its layers hold others, as in fp8, the plain ones loaded beside it."""
    own = transformer.state_dict()
    with torch.device("meta"):
        wanted = Transformer(transformer.config).state_dict()
    if own.keys() == wanted.keys() and all(own[key].shape == wanted[key].shape for key in wanted):
        return own
    _log("loading plain weights for the peer")
    return load_component("transformer", plan.artifacts["checkpoint"], plan.device, plan.dtype).state_dict()


def _log(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
