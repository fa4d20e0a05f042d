"""Runs a plan: stages into a hidden folder, everything moved to the output folder at the end."""

from __future__ import annotations

import functools
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ltxgen.diffusion.noise import NoiseSource
from ltxgen.recipe.executor import StageExecutor
from ltxgen.recipe.manifest import write_manifest, write_recipe
from ltxgen.recipe.parts import ArtifactParts
from ltxgen.recipe.plan import Plan
from ltxgen.runtime.environment import set_threads, use_full_float32
from ltxgen.runtime.memory import MemoryMeter
from ltxgen.runtime.progress import Progress
from ltxgen.stage.denoise import NOISE

TENSORS = "tensors.safetensors"
RUN_FILES = frozenset({"video.mp4", "contact_sheet.png", TENSORS, "recipe.yaml", "manifest.json"})


def run_plan(plan: Plan, composed: Mapping[str, Any], progress: Progress) -> Path:
    """Run all stages; returns the output folder, which then holds everything, or after an error nothing new.

    `composed` is the config that the plan was made from; it becomes recipe.yaml.
    """
    recipe = plan.recipe
    set_threads(recipe.runtime.threads)
    use_full_float32()
    started = time.perf_counter()
    tensors: dict[str, torch.Tensor] = {}

    def record(name: str, tensor: torch.Tensor) -> None:
        tensors[name] = tensor.detach().to("cpu", copy=True).contiguous()

    noise = NoiseSource(recipe.request.seed, device=plan.device, dtype=plan.dtype, draw_on=recipe.runtime.noise)
    parts = ArtifactParts(plan.artifacts, plan.options, plan.device)
    executor = StageExecutor(parts, progress, functools.partial(MemoryMeter, plan.device), recipe.memory.keep)
    output = Path(recipe.output.dir).expanduser()
    with whole_folder(output) as folder:
        progress.plan(list(plan.stages))
        with torch.inference_mode():
            executor.run(plan.stages, {NOISE: noise}, folder, record if recipe.output.tensors else None)
        if recipe.output.tensors:
            save_file(tensors, folder / TENSORS)
        write_recipe(composed, folder / "recipe.yaml")
        if recipe.output.tensors:
            shutil.copymode(folder / "recipe.yaml", folder / TENSORS)  # safetensors lets nobody else read
        write_manifest(plan, executor.records, time.perf_counter() - started, folder / "manifest.json")
    return output


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """A hidden folder whose files are moved into `output` when the block ends, and deleted when it raises.

    `output` then holds one run: files of an earlier one that this one did not write are gone.
    """
    made = [folder for folder in (output, *output.parents) if not folder.exists()]
    hidden: Path | None = None
    try:
        output.mkdir(parents=True, exist_ok=True)
        hidden = Path(tempfile.mkdtemp(prefix=".partial-", dir=output))
        yield hidden
        written = {file.name for file in hidden.iterdir()}
        for name in RUN_FILES - written:
            (output / name).unlink(missing_ok=True)  # an earlier run's, which would pass for this one's
        for file in sorted(hidden.iterdir()):
            file.replace(output / file.name)
        hidden.rmdir()
    except BaseException:
        if hidden is not None:
            shutil.rmtree(hidden, ignore_errors=True)
        for folder in made:
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()
        raise
