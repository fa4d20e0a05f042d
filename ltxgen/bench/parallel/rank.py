"""What each rank of `ltxgen bench parallel` does: plans, loads once, and measures row by row with the others."""

from __future__ import annotations

import dataclasses
import functools
import gc
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltxgen.bench.ceilings import sustained_products
from ltxgen.bench.decoding import latent_shape
from ltxgen.bench.parallel.agreement import other_batching, other_kernel, psnr, relative_l2
from ltxgen.bench.parallel.entries import decode_entry, link_entry, step_entry, told
from ltxgen.bench.parallel.links import measure_links, messages_of
from ltxgen.bench.parallel.rows import (
    OTHER_BATCHING,
    OTHER_KERNEL,
    Row,
    SizePlans,
    decoding,
    denoising,
    plan_size,
    rows_of,
    sharded_rows,
    tile_rows,
)
from ltxgen.bench.parallel.trial import Together, Trial, try_decoding, try_steps
from ltxgen.bench.results import Entry, Results
from ltxgen.diffusion.noise import NoiseSource
from ltxgen.diffusion.pair import Pair
from ltxgen.models.transformer import Transformer
from ltxgen.parallel.axes import Axis
from ltxgen.parallel.launch import thaw
from ltxgen.recipe.plan import Plan
from ltxgen.recipe.run import NO_FOLDER, parts_of
from ltxgen.runtime.displays import create_progress
from ltxgen.runtime.environment import set_threads, use_full_float32, versions
from ltxgen.runtime.ranks import Ranks, start_ranks
from ltxgen.stage.decode_video import DecodeVideo
from ltxgen.stage.denoise import Denoise
from ltxgen.stage.protocol import RunContext

_ROW_SECONDS = 1.0  # of a row beside its steps: random inputs, comparing, writing
_FIRST_RATIO = 2.0  # of measured to predicted time, until one was measured
_DECODE_ROUNDS = 2
_PRODUCTS_SECONDS = {"cuda": 2.0, "cpu": 0.1}
_DECODE_SECONDS_PER_PIXEL = 8e-9  # in tiles, on an H200 (1.5 s for 121 frames of 1536x1024)


def run_as_bench_rank(frozen: Path, sha256: str) -> None:
    """Run as one of the ranks that `bench_parallel` started; the first one writes the figures, row by row."""
    order = thaw(frozen, sha256)
    ranks = start_ranks()
    sizes = [plan_size(config, ranks.world_size, order["steps"], ranks.local_rank) for config in order["configs"]]
    set_threads(sizes[0].one.recipe.runtime.threads)
    use_full_float32()
    machine = {**versions(sizes[0].one.device), "ranks": str(ranks.world_size), **_as_run(sizes[0])}
    machine["products"] = ", ".join(f"{rate / 1e12:.3g}" for rate in _products(sizes[0].one, ranks))
    with create_progress("quiet").stage("bench") as progress, torch.inference_mode():
        bench = Bench(
            ranks,
            RunContext(NO_FOLDER, progress, lambda name, tensor: None, lambda name, fact: None),
            Budget(order["started"], order["budget_seconds"], ranks),
            Results(machine, tuple(order["overrides"])),
            Path(order["json"]),
        )
        bench.run(sizes)


def _as_run(plans: SizePlans) -> dict[str, str]:
    """The backend of the video's self attention as measured, which can be merged, and as one GPU would choose it."""
    return {
        "attention": _builder(plans).backends["video_self"][0],
        "attention_of_one_gpu": plans.one.backends["video_self"][0],
    }


def _products(plan: Plan, ranks: Ranks) -> list[float]:
    """Matrix products of every rank, operations a second while all are at it: GPUs of one kind are not all as fast."""
    assert plan.parallel is not None, "a plan that can run knows its ranks"
    seconds = _PRODUCTS_SECONDS[plan.device.type]
    ranks.gather(None)  # together
    return ranks.gather(sustained_products(plan.parallel.config.video.width, plan.device, plan.dtype, seconds))


def _builder(plans: SizePlans) -> Plan:
    """A plan with a ring: its transformer's attention can be merged, and serves every layout and one GPU."""
    return next(plan for shape, plan in plans.by_mesh.items() if shape.ring > 1)


@dataclass
class Budget:
    """Whether what is to come fits the time that is left; all ranks go by the first one's answer."""

    started: float  # on time.time()'s clock, which two processes share
    seconds: float | None
    ranks: Ranks
    ratio: float = _FIRST_RATIO  # predictions may be for other hardware: how far the last one was off

    def allows(self, seconds: float) -> bool:
        left = None if self.seconds is None else self.seconds - (time.time() - self.started)
        return bool(self.ranks.from_first(left is None or seconds <= left))

    def seconds_of(self, row: Row, evaluations: int) -> float:
        predicted = row.predicted
        if predicted is None:
            request = row.plan.recipe.request
            return _DECODE_SECONDS_PER_PIXEL * request.width * request.height * request.num_frames * evaluations
        return self.ratio * predicted.seconds * evaluations + _ROW_SECONDS


@dataclass
class Bench:
    """One run of the benchmark on one rank; the first one writes `results` to `json`.

    `made` holds what the rows made, by their names, and `load_seconds` what loading the transformer took.
    """

    ranks: Ranks
    context: RunContext
    budget: Budget
    results: Results
    json: Path
    made: dict[str, Pair[Tensor]] = field(default_factory=dict)
    load_seconds: float = 0.0

    def run(self, sizes: Sequence[SizePlans]) -> None:
        """Links, every row with whole weights, tiles of the picture, and last a size with sharded weights."""
        self._links(sizes)

        def steps(transformer: Transformer) -> None:
            for plans in sizes:
                self._rows(rows_of(plans), transformer)

        def pictures(decoder: Any) -> None:
            for plans in sizes:
                self._tiles(plans, decoder)
            for plans in sizes:
                self._pictures(plans, decoder)

        self._use("transformer", _builder(sizes[0]), steps)
        if any(decoding(sizes[0].one)):
            self._use("video_decoder", sizes[0].one, pictures)
        self._sharded(sizes[0])

    def _links(self, sizes: Sequence[SizePlans]) -> None:
        first = sizes[0].one
        tokens = {plans.size: max(stage.video_grid.num_tokens for stage in denoising(plans.one)) for plans in sizes}
        assert first.parallel is not None, "a plan that can run knows its ranks"
        messages = messages_of(first.parallel.config, tokens, self.ranks.world_size, first.dtype.itemsize)
        axis = Axis.of_all_ranks(first.device.type)
        for link in measure_links(messages, axis, first.device, self._together):
            self._write(link_entry(link, self.ranks.world_size))

    def _rows(self, rows: Sequence[Row], transformer: Transformer) -> None:
        for row in rows:
            assert isinstance(row.stage, Denoise), "rows of the transformer"
            if self._has_time(self.budget.seconds_of(row, row.num_timed + _warm_ups(row)), row.name):
                self._steps(row, row.stage, transformer)

    def _steps(self, row: Row, stage: Denoise, transformer: Transformer) -> None:
        trial, made, order = None, None, None
        if self.ranks.is_main or not row.alone:
            together: Together = _alone if row.alone else self._together
            with _order(row, stage, transformer) as order:
                trial, made = try_steps(stage, transformer, self.context, together, _warm_ups(row))
        trials = self._all(trial)
        predicted = row.predicted
        assert predicted is not None, "a denoising stage has steps"
        self.budget.ratio = self.ranks.from_first(max(each.ms for each in trials) / 1000 / predicted.seconds)
        if not self.ranks.is_main:
            return
        assert made is not None, "the first rank runs every row"
        reference = self.made.get(row.reference)
        self.made[row.name] = made
        self._write(step_entry(row, trials, None if reference is None else relative_l2(made, reference), order))

    def _tiles(self, plans: SizePlans, decoder: Any) -> None:
        """The picture decoded by one rank and by all, from what is the same at random on each."""
        alone: Tensor | None = None
        for row in tile_rows(plans):
            stage = row.stage
            assert isinstance(stage, DecodeVideo), "rows of the decoder"
            if not self._has_time(self.budget.seconds_of(row, 1 + _DECODE_ROUNDS), row.name):
                continue
            trial, frames = None, None
            if self.ranks.is_main or not row.alone:
                together: Together = _alone if row.alone else self._together
                noise = NoiseSource(0, device=row.plan.device, dtype=row.plan.dtype)
                latents = noise.draw(latent_shape(stage, row.plan))
                trial, frames = try_decoding(stage, decoder, latents, self.context, together, _DECODE_ROUNDS)
            trials = self._all(trial)
            if self.ranks.is_main:
                assert frames is not None, "the first rank joins the tiles"
                equal = None if row.alone or alone is None else torch.equal(frames, alone)
                alone = frames if row.alone else alone
                self._write(decode_entry(row, trials, equal))

    def _pictures(self, plans: SizePlans, decoder: Any) -> None:
        """How far the pictures of the layouts are from one GPU's, all decoded by the first rank."""
        for alone in (row for row in tile_rows(plans) if row.alone):
            stage = alone.stage
            assert isinstance(stage, DecodeVideo), "rows of the picture"
            rows = [row for row in rows_of(plans) if f"{row.stage.name}.video" == stage.source]
            if not self._has_time(self.budget.seconds_of(alone, len(rows)), f"pictures of {plans.size}"):
                continue
            reference: Tensor | None = None
            for row in (row for row in rows if row.name in self.made):  # on the first rank
                latents = self.made[row.name].video
                assert latents is not None, "a stage with a picture"
                _, frames = try_decoding(stage, decoder, latents, self.context, _alone, rounds=0)
                assert frames is not None, "one rank has the frames"
                if row.kind == "one":
                    reference = frames
                elif reference is not None:
                    self._amend(row.entry_name, psnr_db=psnr(frames, reference))

    def _sharded(self, plans: SizePlans) -> None:
        rows = sharded_rows(plans)
        seconds = self.load_seconds + sum(self.budget.seconds_of(row, row.num_timed + 1) for row in rows)
        if self._has_time(seconds, ", ".join(row.name for row in rows)):
            self._use("transformer", plans.sharded, functools.partial(self._rows, rows))

    def _use(self, name: str, plan: Plan, use: Callable[[Any], None]) -> None:
        """Load a component without its LoRAs, which change no shape, hand it to `use` and free it."""
        request = next(each for stage in plan.stages.values() for each in stage.parts if each.name == name)
        source = parts_of(plan, self._log)
        self._together()
        started = time.perf_counter()
        part = source.build(dataclasses.replace(request, loras=()))
        self._together()
        seconds = self.ranks.from_first(time.perf_counter() - started)
        self.load_seconds = max(self.load_seconds, seconds)
        self._log(f"{name} loaded in {seconds:.1f} s")
        use(part)
        del part
        gc.collect()  # compiled modules hold themselves, and with them the weights
        source.released([name])

    def _has_time(self, seconds: float, what: str) -> bool:
        if self.budget.allows(seconds):
            return True
        self._log(f"{what}: left out, it would take about {seconds:.0f} s, which the budget does not have")
        self.results.skipped.append(what)
        self._save()
        return False

    def _together(self) -> None:
        """Wait until every rank is here, with its GPU at rest."""
        self.ranks.gather(None)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def _all(self, trial: Trial | None) -> list[Trial]:
        """Those of the ranks that took part, on every rank."""
        return [each for each in self.ranks.gather(trial) if each is not None]

    def _write(self, entry: Entry) -> None:
        self.results.entries.append(entry)
        self._log(told(entry))
        self._save()

    def _amend(self, name: str, **details: Any) -> None:
        for number, entry in enumerate(self.results.entries):
            if entry.name == name:
                self.results.entries[number] = dataclasses.replace(entry, details={**entry.details, **details})
        self._save()

    def _save(self) -> None:
        if self.ranks.is_main:
            self.results.write(self.json)

    def _log(self, message: str) -> None:
        if self.ranks.is_main:
            print(f"{time.time() - self.budget.started:6.1f} s  {message}", file=sys.stderr, flush=True)


def _order(row: Row, stage: Denoise, transformer: Transformer) -> AbstractContextManager[str | None]:
    """The order of sums in which a row is computed; yields the override that it stands for."""
    if row.layout == OTHER_BATCHING:
        return other_batching(transformer, stage)
    if row.layout == OTHER_KERNEL:
        return other_kernel(transformer, row.plan)
    return nullcontext()


def _warm_ups(row: Row) -> int:
    """Evaluations before those that are timed: the first one connects ranks and chooses kernels, and a step that is
    recorded as a graph is so when it is met again. Of the other order of sums only the result is asked for."""
    if row.kind == "order":
        return 0
    return 2 if row.graphs else 1


def _alone() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
