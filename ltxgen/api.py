"""Runs from Python: `ltxgen.load(...)` gives a pipeline whose weights stay loaded between runs."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ltxgen.config import compose
from ltxgen.config.errors import Problem, Refusal
from ltxgen.config.recipe import parse_recipe
from ltxgen.recipe.forecast import Room
from ltxgen.recipe.plan import Plan, make_plan
from ltxgen.recipe.run import run_into, run_plan, writing_nothing
from ltxgen.recipe.session import Session
from ltxgen.runtime.displays import Mode, create_progress
from ltxgen.stage.decode_audio import Sound
from ltxgen.stage.protocol import Step, Stream

OnStep = Callable[[Step], None]


@dataclass(frozen=True)
class Result:
    """What a run made, on the CPU; None for what the recipe has no stage for.

    `frames` is uint8 (F,H,W,3), `waveform` fp32 (2, samples) in [-1, 1] at `sample_rate`. `latents` holds those of
    every stage by name, such as `refine.video` (1,C,F,H,W) and `refine.audio` (1,C,T,M). `manifest` is what
    manifest.json says, and `folder` is where the files are if they were asked for.
    """

    frames: Tensor | None
    waveform: Tensor | None
    sample_rate: int | None
    latents: Mapping[str, Tensor]
    manifest: Mapping[str, Any]
    folder: Path | None


def load(recipe: str, overrides: Sequence[str] = (), *, progress: Mode = "quiet") -> Pipeline:
    """A pipeline for a recipe by name or by path, with overrides as on the command line: `["stages.base.steps=20"]`.

    Weights are loaded by its first run. Raises Refusal with everything that is wrong with the recipe.
    """
    words = compose.name_recipe_paths(compose.open_overrides([f"+recipe={recipe}", *overrides]))
    return Pipeline(compose.compose_config(words), progress)


class Pipeline(AbstractContextManager["Pipeline"]):
    """Runs one recipe for many requests, in this process; `close`, or leaving its block, frees the weights.

    A request is a mapping of the fields of `conf/request`, each in the place of the recipe's.
    """

    def __init__(self, config: Mapping[str, Any], progress: Mode = "quiet") -> None:
        self.config = config
        self._progress = progress
        self._session = Session()
        self._room: Room | None = None  # as it was before anything was loaded
        self.plan().require()

    @property
    def loads(self) -> Mapping[str, int]:
        """How often each component was loaded."""
        return dict(self._session.loads)

    def plan(self, request: Mapping[str, Any] | None = None) -> Plan:
        """What would run, with all that keeps it from running in `problems` and `here`; reads no weights.

        Raises Refusal for a request that is no request.
        """
        return self._plan(self._composed(request, None))

    def run(
        self,
        request: Mapping[str, Any] | None = None,
        *,
        on_step: OnStep | None = None,
        output: Path | str | None = None,
    ) -> Result:
        """Run all stages; with `output`, into that folder as the command line does.

        `on_step` is called after each denoising step. Raises Refusal before anything runs.
        """
        config = self._composed(request, output)
        plan = self._plan(config).require()
        watch = Collect(on_step)
        try:
            with create_progress(self._progress) as progress:
                parts = self._session.parts(plan, [plan], progress.note)
                if output is not None:
                    folder = run_plan(plan, config, progress, parts=parts, watch=watch)
                    return watch.result(folder, folder)
                with tempfile.TemporaryDirectory(prefix="ltxgen-") as scratch:
                    run_into(Path(scratch), writing_nothing(plan), config, progress, parts=parts, watch=watch)
                    return watch.result(Path(scratch), None)
        except BaseException:
            self._session.close()
            raise

    def close(self) -> None:
        """Free the weights; another run loads them again."""
        self._session.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _composed(self, request: Mapping[str, Any] | None, output: Path | str | None) -> dict[str, Any]:
        own = {"log": False, "tensorboard": False} if output is None else {"dir": str(output)}
        return {
            **self.config,
            "request": {**self.config["request"], **(request or {})},
            "output": {**self.config["output"], **own},
        }

    def _plan(self, config: Mapping[str, Any]) -> Plan:
        recipe = parse_recipe(config)
        if (recipe.parallel.num_processes or 1) > 1:
            message = "runs from Python are one process each; leave it out, or use the command line"
            raise Refusal([Problem("parallel.num_processes", recipe.parallel.num_processes, message)])
        plan = make_plan(recipe, room=self._room)
        if self._room is None and plan.memory is not None:
            self._room = plan.memory.room
        return plan


class Collect:
    """Keeps what the stages of a run write."""

    def __init__(self, on_step: OnStep | None) -> None:
        self._on_step = on_step
        self._chunks: list[Tensor] = []
        self._sound: Sound | None = None
        self._latents: dict[str, Tensor] = {}

    def stepped(self, step: Step) -> None:
        if self._on_step is not None:
            self._on_step(step)

    def wrote(self, name: str, value: Any) -> Any:
        if isinstance(value, Stream):
            kept = Stream(self._kept(value))
            kept.made_by = value.made_by
            return kept
        if isinstance(value, Sound):
            self._sound = value
        elif isinstance(value, Tensor):
            self._latents[name] = value
        return value

    def result(self, written: Path, folder: Path | None) -> Result:
        """Of the run that left its manifest in the folder `written`; outside of inference mode, so that its tensors can
        be used anywhere."""
        sound = self._sound
        return Result(
            torch.cat(self._chunks) if self._chunks else None,
            None if sound is None else sound.waveform[0].cpu().clone(),
            None if sound is None else sound.sample_rate,
            {name: latent.cpu().clone() for name, latent in self._latents.items()},
            json.loads((written / "manifest.json").read_text(encoding="utf-8")),
            folder,
        )

    def _kept(self, chunks: Iterator[Tensor]) -> Iterator[Tensor]:
        for chunk in chunks:
            self._chunks.append(chunk.cpu())
            yield chunk
