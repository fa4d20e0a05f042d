"""What happens in a run as events, for whoever wants to write them down as they come: a log, TensorBoard.

What is written stands in the output folder itself, so that it can be looked at meanwhile and outlasts an interruption.
It is no part of the recipe: a run with it gives the same files, and the same keys, as one without.
"""

from __future__ import annotations

import datetime
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from ltxgen import __version__
from ltxgen.recipe.executor import StageExecutor, StageRecord
from ltxgen.recipe.log import LOG, JsonLines
from ltxgen.recipe.manifest import WallTime
from ltxgen.recipe.plan import Plan
from ltxgen.recipe.tensorboard import BOARD, Board
from ltxgen.runtime.displays import QuietDisplay
from ltxgen.runtime.progress import Clock, Progress, StageProgress, StageState
from ltxgen.stage.protocol import Step, Watch

Sink = Callable[[Mapping[str, Any]], None]
FOLLOWING = (LOG, BOARD)
"""What is written during a run, in its output folder."""


@contextmanager
def following(plan: Plan, progress: Progress, folder: Path) -> Iterator[Events]:
    """The events of a run into `folder`, which has what was written of them when the block ends."""
    asked = plan.recipe.output
    output = Path(asked.dir).expanduser()
    with ExitStack() as held:
        sinks: list[Sink] = []
        if asked.log:
            sinks.append(held.enter_context(JsonLines(output / LOG)))
        if asked.tensorboard:
            sinks.append(held.enter_context(Board(output / BOARD, folder)))
        events = Events(sinks)
        if not sinks:
            yield events
            return
        held.enter_context(progress.also(events))
        try:
            yield events
        except BaseException as error:
            events.failed(error)
            raise
    for name in FOLLOWING:
        if (output / name).is_dir():
            shutil.copytree(output / name, folder / name)
        elif (output / name).exists():
            shutil.copyfile(output / name, folder / name)


class Events(QuietDisplay):
    """A display, and a watch, that gives `sinks` a mapping for each event: `event`, what it is; `at`, when, in UTC;
    and its facts."""

    def __init__(self, sinks: Sequence[Sink] = (), clock: Clock = time.perf_counter) -> None:
        self._sinks = sinks
        self._clock = clock
        self._executor: StageExecutor | None = None
        self._stage: StageProgress | None = None  # that runs
        self._step_began = 0.0

    def begin(self, plan: Plan, executor: StageExecutor, key: Callable[[], str]) -> None:
        """The run of `plan` begins; `key` gives what tells it from others."""
        if not self._sinks:
            return
        self._executor = executor
        self._tell(
            "run began",
            recipe=plan.recipe.name,
            key=key(),
            seed=plan.recipe.request.seed,
            device=str(plan.device),
            ltxgen=__version__,
            stages=list(plan.stages),
            notes=list(plan.notes),
        )

    def watching(self, watch: Watch | None) -> Watch | None:
        """`watch`, and these events beside it if someone wants them."""
        return Both(self, watch) if self._sinks else watch

    def started(self, stage: StageProgress) -> None:
        self._stage = stage
        self._tell("stage began", stage=stage.name)

    def changed(self, stage: StageProgress) -> None:
        if not stage.num_done:  # its steps begin
            self._step_began = self._clock()

    def stepped(self, step: Step) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()  # a step that is only queued has taken no time yet
        now = self._clock()
        seconds, self._step_began = now - self._step_began, now
        self._tell(
            "step",
            stage=step.stage,
            number=step.number + 1,
            of=step.num_steps,
            sigma=step.sigma,
            seconds=round(seconds, 4),
            passes=list(step.passes),
            peak_bytes=_peak(self._stage),
        )

    def ended(self, stage: StageProgress) -> None:
        if stage.state is StageState.FAILED:
            self._tell("stage failed", stage=stage.name, seconds=round(stage.seconds, 3), peak_bytes=_peak(stage))
            return
        self._tell("stage ended", stage=stage.name, **self._took(stage.name), peak_bytes=_peak(stage))

    def note(self, text: str) -> None:
        self._tell("note", text=text)

    def end(self, took: WallTime) -> None:
        """The run is done. What was streamed is counted only now."""
        records = {} if self._executor is None else self._executor.records
        stages = {name: {**self._took(name), "peak_bytes": each.peak_bytes} for name, each in records.items()}
        self._tell("run ended", seconds=round(took.all, 3), stages=stages)

    def failed(self, error: BaseException) -> None:
        what = "run failed" if isinstance(error, Exception) else "run interrupted"
        self._tell(what, error=f"{type(error).__name__}: {error}")

    def _took(self, name: str) -> dict[str, Any]:
        record = StageRecord() if self._executor is None else self._executor.records[name]
        seconds = {"seconds": round(record.seconds, 3), "load_seconds": round(record.load_seconds, 3)}
        return {"from": record.source, "key": record.key, **seconds}

    def _tell(self, event: str, **facts: Any) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        for sink in self._sinks:
            sink({"event": event, "at": now, **facts})


class Both:
    """Events beside another watch."""

    def __init__(self, events: Events, watch: Watch | None) -> None:
        self._events, self._watch = events, watch

    def stepped(self, step: Step) -> None:
        self._events.stepped(step)
        if self._watch is not None:
            self._watch.stepped(step)

    def wrote(self, name: str, value: Any) -> Any:
        return value if self._watch is None else self._watch.wrote(name, value)


def _peak(stage: StageProgress | None) -> int | None:
    """So far; None where nothing is measured."""
    return stage.memory.peak_bytes if stage is not None and stage.memory is not None else None
