"""Runs a plan: stages into a hidden folder, everything moved to the output folder at the end."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from ltxgen.artifacts.cache_folder import cache_folder
from ltxgen.artifacts.components import artifact_of
from ltxgen.artifacts.hashing import Hashing
from ltxgen.artifacts.load import ReadTensor, tensor_reader
from ltxgen.artifacts.placement import WHOLE, Placement
from ltxgen.config.errors import Problem
from ltxgen.config.inputs import INPUTS
from ltxgen.diffusion.noise import NoiseSource
from ltxgen.media.files import locked
from ltxgen.media.previews import PREVIEWS, Previews
from ltxgen.media.provenance import Provenance
from ltxgen.memory.placement import StreamedWeights
from ltxgen.parallel.ending import discarded_unless_done
from ltxgen.recipe.cache import open_cache
from ltxgen.recipe.events import FOLLOWING, Events, following
from ltxgen.recipe.executor import PartSource, StageExecutor, StageRecord
from ltxgen.recipe.lock import recipe_text, settled, write_recipe
from ltxgen.recipe.manifest import WallTime, made_from, write_manifest
from ltxgen.recipe.parts import ArtifactParts
from ltxgen.recipe.plan import Plan
from ltxgen.recipe.resume import own_stages, resumable
from ltxgen.runtime.clock import Began
from ltxgen.runtime.environment import set_threads, use_full_float32
from ltxgen.runtime.memory import MemoryMeter
from ltxgen.runtime.progress import Progress
from ltxgen.runtime.ranks import ONE_PROCESS, Ranks
from ltxgen.stage.denoise import NOISE
from ltxgen.stage.protocol import NO_WATCHER, PartRequest, RunContext, Stream, Watch

TENSORS = "tensors.safetensors"
MANIFEST = "manifest.json"
RUN_FILES = frozenset(
    {"video.mp4", "contact_sheet.png", "sound.wav", TENSORS, "recipe.yaml", INPUTS, PREVIEWS, MANIFEST, *FOLLOWING}
)
PARTIAL, LOCK = ".partial-", ".lock"  # the hidden folder of a run, and the file in it that a living run has locked
STARTING_SECONDS = 60.0  # by then a new hidden folder has its lock

# The folder of ranks that write nothing: a stage that tries to fails at once, on any machine.
NO_FOLDER = Path(os.devnull)


def run_plan(
    plan: Plan,
    composed: Mapping[str, Any],
    progress: Progress,
    ranks: Ranks = ONE_PROCESS,
    parts: PartSource | None = None,
    watch: Watch | None = None,
    continues: bool = False,
    began: Began | None = None,
) -> Path:
    """Run all stages; returns the output folder, which then holds everything, or after an error nothing new.

    `composed` is the config that the plan was made from; it becomes recipe.yaml. Of several ranks the first writes.
    With `continues`, an interrupted run into the same folder goes on. `began` is when the run did, now if it isn't
    given.
    """
    output = Path(plan.recipe.output.dir).expanduser()
    with (
        output_folder(output, composed, progress.note, continues) if ranks.is_main else nullcontext(NO_FOLDER) as folder
    ):
        run_into(folder, plan, composed, progress, ranks, parts, watch, began)
    return output


@contextmanager
def output_folder(
    output: Path, composed: Mapping[str, Any], note: Callable[[str], None], continues: bool = False
) -> Iterator[Path]:
    """As `whole_folder`, for a run of `composed` that can be resumed after an interruption."""
    with resumable(output, composed, note, continues=continues), whole_folder(output) as folder:
        if not continues:
            for name in FOLLOWING:
                _remove(output / name)
        yield folder


def run_into(
    folder: Path,
    plan: Plan,
    composed: Mapping[str, Any],
    progress: Progress,
    ranks: Ranks = ONE_PROCESS,
    parts: PartSource | None = None,
    watch: Watch | None = None,
    began: Began | None = None,
) -> None:
    """Run all stages and leave everything in `folder`, an empty one; ranks but the first leave nothing.

    `parts` is where components come from; None: from the plan's files. `watch` follows the run.
    """
    with following(plan, progress, folder) if ranks.is_main else nullcontext(Events()) as events:
        _run_into(folder, plan, composed, progress, ranks, parts, watch, began, events)


def _run_into(
    folder: Path,
    plan: Plan,
    composed: Mapping[str, Any],
    progress: Progress,
    ranks: Ranks,
    parts: PartSource | None,
    watch: Watch | None,
    began: Began | None,
    events: Events,
) -> None:
    recipe = plan.recipe
    set_threads(recipe.runtime.threads)
    use_full_float32()
    started = time.perf_counter()
    began = began or Began(started, started)
    tensors: dict[str, torch.Tensor] = {}

    def record(name: str, tensor: torch.Tensor) -> None:
        if ranks.is_main:
            tensors[name] = tensor.detach().to("cpu", copy=True).contiguous()

    noise = NoiseSource(recipe.request.seed, device=plan.device, dtype=plan.dtype, draw_on=recipe.runtime.noise)
    keep = "run" if recipe.memory.policy == "resident" else "last_use"
    parts = parts or parts_of(plan, progress.note)
    ahead = plan.memory.forecast.ahead if plan.memory else {}
    executor = StageExecutor(parts, progress, functools.partial(MemoryMeter, plan.device), keep, ahead)
    stages = (plan if ranks.is_main else writing_nothing(plan)).stages
    progress.plan(list(stages))
    watcher = _previews(plan, folder, progress) if ranks.is_main else NO_WATCHER
    state = {NOISE: noise}

    def wall(records: Mapping[str, StageRecord]) -> WallTime:
        return WallTime.of(began, started, executor.first_step_at, records.values(), time.perf_counter())

    def about() -> str:
        return Provenance(recipe_text(settled(composed, state), plan.artifacts), made_from(plan)).as_comment()

    if ranks.is_main:
        with Hashing(each.path for each in plan.artifacts.values() if each.path is not None) as hashing:
            hashing.start()  # side by side, what stored outputs are looked up by
    events.begin(plan, executor, lambda: hashlib.sha256(recipe_text(composed, plan.artifacts).encode()).hexdigest())
    with torch.inference_mode():
        outputs = open_cache(plan, state, ranks, progress.note, own_stages(Path(recipe.output.dir)))
        recorded = record if recipe.output.tensors else None
        executor.run(stages, state, folder, recorded, outputs, watcher, about, events.watching(watch))
    if not ranks.is_main:
        return
    if recipe.output.tensors:
        save_file(tensors, folder / TENSORS)
    composed = settled(composed, state)
    if (prompt := composed["request"]["prompt"]) != recipe.request.prompt:
        progress.note(f"the prompt that was made of the request's: {prompt}")
    write_recipe(composed, plan.artifacts, folder / "recipe.yaml")
    if recipe.output.tensors:
        shutil.copymode(folder / "recipe.yaml", folder / TENSORS)  # safetensors lets nobody else read
    took = wall(executor.records)
    write_manifest(plan, executor.records, took, composed["request"], folder / MANIFEST)
    progress.note(f"run: {took}")
    events.end(took)


def parts_of(plan: Plan, note: Callable[[str], None]) -> ArtifactParts:
    """The components of a run, as it would have them: placed on the ranks, with its kernels or compiled. `note` is told
    what that does."""
    return ArtifactParts(
        plan.artifacts,
        plan.options,
        plan.device,
        _placement(plan),
        fused=plan.fused,
        compiling=note if plan.compiles else None,
        swaps=plan.swaps,
    )


def _previews(plan: Plan, folder: Path, progress: Progress) -> Previews:
    def known() -> Path | None:
        checkpoint = plan.artifacts["checkpoint"].sha256
        return cache_folder() / PREVIEWS / f"{checkpoint}.safetensors" if checkpoint else None

    recipe = plan.recipe
    return Previews(folder / PREVIEWS, recipe.output.previews, recipe.request.fps, known, progress.note)


def _placement(plan: Plan) -> Placement:
    sharded = plan.parallel.placement(plan.device.type) if plan.parallel else None
    if sharded is not None or plan.memory is None or not plan.memory.forecast.num_kept:
        return sharded or WHOLE

    def read_again(component: str) -> AbstractContextManager[ReadTensor]:
        artifact = plan.artifacts[artifact_of(component)]
        return tensor_reader(component, artifact, plan.dtype, plan.options, plan.device)

    forecast = plan.memory.forecast
    source: Literal["host", "disk"] = "disk" if forecast.policy == "stream from disk" else "host"
    return StreamedWeights(plan.device, forecast.num_kept, source, read_again)


def writing_nothing(plan: Plan) -> Plan:
    """`plan` with stages whose only results are files replaced by ones that take what they read and drop it."""
    stages = {name: stage if stage.writes else Drop(stage.reads) for name, stage in plan.stages.items()}
    return dataclasses.replace(plan, stages=stages)


class Drop:
    """Stands for a stage that writes files, on the ranks that have none to write.

    It takes a stream to its end, since the first rank's stream may need what this rank computes for it.
    """

    writes: Sequence[str] = ()
    parts: Sequence[PartRequest] = ()
    size_multiple = 1
    num_passes = 0
    makes_stream = False
    work = None

    def __init__(self, reads: Sequence[str]) -> None:
        self.reads = reads

    def infer(self, shapes: dict[str, Any]) -> list[Problem]:
        return []

    def activation_bytes(self, free_bytes: int) -> int:
        return 0

    def describe(self) -> dict[str, Any]:
        return {}

    def run(self, state: Mapping[str, Any], parts: Mapping[str, Any], context: RunContext) -> dict[str, Any]:
        for value in state.values():
            if isinstance(value, Stream):
                collections.deque(value, maxlen=0)
        return {}


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """A hidden folder whose files are moved into `output` when the block ends, and deleted when it raises.

    `output` then holds one run: files of an earlier one that this one did not write are gone, and so is what a killed
    one left. The manifest is moved last: where it is, all is.
    """
    made = [folder for folder in (output, *output.parents) if not folder.exists()]
    hidden: Path | None = None

    def discard() -> None:
        if hidden is not None:
            shutil.rmtree(hidden, ignore_errors=True)
        for folder in made:
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()

    with discarded_unless_done(discard):
        output.mkdir(parents=True, exist_ok=True)
        hidden = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=output))
        with locked(hidden / LOCK):
            _discard_abandoned(output)
            yield hidden
            (output / MANIFEST).unlink(missing_ok=True)
            written = {file.name for file in hidden.iterdir()} - {LOCK}
            for name in RUN_FILES | written:  # an earlier run's, which would pass for this one's
                _remove(output / name)
            for name in sorted(written, key=lambda name: (name == MANIFEST, name)):
                (hidden / name).replace(output / name)
            shutil.rmtree(hidden)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _discard_abandoned(output: Path) -> None:
    """Hidden folders of runs that were killed: nobody has their lock."""
    for folder in output.glob(f"{PARTIAL}*"):
        is_new = time.time() - folder.stat().st_mtime < STARTING_SECONDS
        if not (folder / LOCK).exists() and is_new:
            continue
        with locked(folder / LOCK) as alone:
            if alone:
                shutil.rmtree(folder, ignore_errors=True)
