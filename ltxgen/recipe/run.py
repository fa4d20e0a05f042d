"""Runs a plan: stages into a hidden folder, everything moved to the output folder at the end."""

from __future__ import annotations

import collections
import functools
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

from ltxgen.artifacts.components import artifact_of
from ltxgen.artifacts.hashing import Hashing
from ltxgen.artifacts.load import ReadTensor, tensor_reader
from ltxgen.artifacts.placement import WHOLE, Placement
from ltxgen.config.errors import Problem
from ltxgen.diffusion.noise import NoiseSource
from ltxgen.memory.placement import StreamedWeights
from ltxgen.parallel.ending import discarded_unless_done
from ltxgen.recipe.executor import StageExecutor
from ltxgen.recipe.manifest import WallTime, write_manifest, write_recipe
from ltxgen.recipe.parts import ArtifactParts
from ltxgen.recipe.plan import Plan
from ltxgen.runtime.clock import Began
from ltxgen.runtime.environment import set_threads, use_full_float32
from ltxgen.runtime.memory import MemoryMeter
from ltxgen.runtime.progress import Progress
from ltxgen.runtime.ranks import ONE_PROCESS, Ranks
from ltxgen.stage.denoise import NOISE
from ltxgen.stage.protocol import PartRequest, RunContext, Stage, Stream

TENSORS = "tensors.safetensors"
RUN_FILES = frozenset({"video.mp4", "contact_sheet.png", TENSORS, "recipe.yaml", "manifest.json"})


# The folder of ranks that write nothing: a stage that tries to fails at once, on any machine.
NO_FOLDER = Path(os.devnull)


def run_plan(
    plan: Plan,
    composed: Mapping[str, Any],
    progress: Progress,
    ranks: Ranks = ONE_PROCESS,
    began: Began | None = None,
) -> Path:
    """Run all stages; returns the output folder, which then holds everything, or after an error nothing new.

    `composed` is the config that the plan was made from; it becomes recipe.yaml. Of several ranks the first writes.
    `began` is when the run did, now if it isn't given.
    """
    output = Path(plan.recipe.output.dir).expanduser()
    with whole_folder(output) if ranks.is_main else nullcontext(NO_FOLDER) as folder:
        run_into(folder, plan, composed, progress, ranks, began)
    return output


def run_into(
    folder: Path,
    plan: Plan,
    composed: Mapping[str, Any],
    progress: Progress,
    ranks: Ranks = ONE_PROCESS,
    began: Began | None = None,
) -> None:
    """Run all stages and leave everything in `folder`, an empty one; ranks but the first leave nothing."""
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
    # While steps run: weights are read by then, and the processor has little to do.
    hashing = Hashing(each.path for each in plan.artifacts.values() if each.path is not None and ranks.is_main)
    executor = StageExecutor(
        parts_of(plan, progress.note),
        progress,
        functools.partial(MemoryMeter, plan.device),
        keep,
        plan.memory.forecast.ahead if plan.memory else {},
        hashing.start,
    )
    stages = plan.stages if ranks.is_main else {name: _writing_nothing(stage) for name, stage in plan.stages.items()}
    progress.plan(list(stages))
    with hashing, torch.inference_mode():
        executor.run(stages, {NOISE: noise}, folder, record if recipe.output.tensors else None)
    if not ranks.is_main:
        return
    if recipe.output.tensors:
        save_file(tensors, folder / TENSORS)
    write_recipe(composed, folder / "recipe.yaml")
    if recipe.output.tensors:
        shutil.copymode(folder / "recipe.yaml", folder / TENSORS)  # safetensors lets nobody else read
    wall = WallTime.of(began, started, executor.first_step_at, executor.records.values(), time.perf_counter())
    write_manifest(plan, executor.records, wall, folder / "manifest.json")
    progress.note(f"run: {wall}")


def parts_of(plan: Plan, note: Callable[[str], None]) -> ArtifactParts:
    """The components of a run, as it would have them: placed on the ranks, compiled. `note` is told what that does."""
    compiling = note if plan.compiles else None
    policy = plan.memory.forecast.policy if plan.memory else "last_use"
    return ArtifactParts(plan.artifacts, plan.options, plan.device, _placement(plan), compiling, policy == "swap")


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


def _writing_nothing(stage: Stage) -> Stage:
    """`stage`, or for one whose only results are files, one that takes what it reads and drops it."""
    return stage if stage.writes else Drop(stage.reads)


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

    `output` then holds one run: files of an earlier one that this one did not write are gone.
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
        hidden = Path(tempfile.mkdtemp(prefix=".partial-", dir=output))
        yield hidden
        written = {file.name for file in hidden.iterdir()}
        for name in RUN_FILES - written:
            (output / name).unlink(missing_ok=True)  # an earlier run's, which would pass for this one's
        for file in sorted(hidden.iterdir()):
            file.replace(output / file.name)
        hidden.rmdir()
