"""How a run is doing: stages, steps, speed, time left, memory.

A run tells a `Progress` what happens; a `Display` (`displays.py`) shows it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType
from typing import Protocol, Self

from ltxgen.runtime.memory import MemoryMeter

Clock = Callable[[], float]


class StageState(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    REUSED = "reused"
    FAILED = "failed"


@dataclass
class StageProgress:
    """One stage as it stands. A stage calls `begin` once it knows its number of steps, then `advance`."""

    name: str
    clock: Clock
    changed: Callable[[StageProgress], None]
    state: StageState = StageState.WAITING
    memory: MemoryMeter | None = None
    text: str = ""
    unit: str = "step"
    num_steps: int | None = None
    num_done: int = 0
    _started: float = 0.0
    _ended: float | None = None
    _marks: list[tuple[int, float]] = field(default_factory=list)  # (steps done, when), the start first

    def begin(self, num_steps: int, unit: str = "step") -> None:
        """Say that `num_steps` steps follow (again for another series of steps in the same stage)."""
        self.num_steps, self.num_done, self.unit = num_steps, 0, unit
        self._marks = [(0, self.clock())]
        self.changed(self)

    def advance(self, num_steps: int = 1, note: str = "") -> None:
        """Say that `num_steps` more steps are done."""
        self.num_done += num_steps
        self.text = note
        self._marks.append((self.num_done, self.clock()))
        self.changed(self)

    def note(self, text: str) -> None:
        """Say what goes on inside the current step, such as the current pass."""
        self.text = text
        self.changed(self)

    @property
    def seconds(self) -> float:
        """Since the start, or in all once it has ended."""
        if self.state is StageState.WAITING:
            return 0.0
        return (self.clock() if self._ended is None else self._ended) - self._started

    @property
    def steps_per_second(self) -> float | None:
        """Without the first advance where there are more: it pays for compilation and allocation."""
        marks = self._marks[1:] if len(self._marks) > 2 else self._marks
        if len(marks) < 2 or marks[-1][1] <= marks[0][1]:
            return None
        return (marks[-1][0] - marks[0][0]) / (marks[-1][1] - marks[0][1])

    @property
    def seconds_left(self) -> float | None:
        rate = self.steps_per_second
        if rate is None or self.num_steps is None:
            return None
        return max(0, self.num_steps - self.num_done) / rate

    def start(self) -> None:
        self.state, self._started = StageState.RUNNING, self.clock()

    def end(self, state: StageState) -> None:
        self.state, self.text, self._ended = state, "", self.clock()


@dataclass(frozen=True)
class SweepProgress:
    """A sweep when its job `name` starts: how many jobs there are, how many have ended, and what took how long.

    So many workers take jobs at the same time.
    """

    name: str
    num_jobs: int
    num_ended: int
    seconds: Sequence[float]
    num_workers: int = 1

    def seconds_left(self, elapsed: float = 0.0) -> float | None:
        """For all jobs that have not ended, when this one has run for `elapsed`: at the mean of those that have."""
        if not self.seconds:
            return None
        mean = sum(self.seconds) / len(self.seconds)
        return max(0.0, (self.num_jobs - self.num_ended) * mean / self.num_workers - elapsed)


class Display(Protocol):
    """Shows stages; `changed` comes for every step, so it decides itself how often it draws."""

    def job(self, sweep: SweepProgress) -> None: ...
    def open(self, stages: Sequence[StageProgress]) -> None: ...
    def started(self, stage: StageProgress) -> None: ...
    def changed(self, stage: StageProgress) -> None: ...
    def ended(self, stage: StageProgress) -> None: ...
    def note(self, text: str) -> None: ...
    def close(self) -> None: ...


class Progress:
    """What a run reports to. A context manager, so that a terminal is given back however the run ends.

    `also` adds displays to the one that it was made with.

    with create_progress() as progress:
        progress.plan(["prompt", "base", "write"])
        with MemoryMeter(device) as memory, progress.stage("base", memory) as stage:
            stage.begin(30)
            for _ in range(30): stage.advance()
    """

    def __init__(self, display: Display, clock: Clock = time.perf_counter) -> None:
        self.stages: list[StageProgress] = []
        self._displays = [display]
        self._clock = clock
        self._open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    @contextmanager
    def also(self, display: Display) -> Iterator[None]:
        """Tell `display` as well, of runs that are planned while the block runs."""
        self._displays.append(display)
        try:
            yield
        finally:
            self._displays.remove(display)

    def job(self, sweep: SweepProgress) -> None:
        """Say that a job of a sweep starts; its stages follow."""
        self._close()
        for display in self._displays:
            display.job(sweep)

    def plan(self, names: Sequence[str]) -> None:
        """Announce the stages of a run, in order; a later call starts the list of another run."""
        self._close()
        self.stages = [StageProgress(name, self._clock, self._changed) for name in names]
        for display in self._displays:
            display.open(self.stages)
        self._open = True

    @contextmanager
    def stage(self, name: str, memory: MemoryMeter | None = None) -> Iterator[StageProgress]:
        """Run a block as the stage `name`; it has failed when the block raises. `memory` gives the peak to show."""
        stage = self._named(name)
        stage.memory = memory
        stage.start()
        for display in self._displays:
            display.started(stage)
        try:
            yield stage
        except BaseException:
            stage.end(StageState.FAILED)
            for display in self._displays:
                display.ended(stage)
            raise
        stage.end(StageState.DONE)
        for display in self._displays:
            display.ended(stage)

    def reused(self, name: str, why: str) -> None:
        """Say that a stage need not run, and why."""
        stage = self._named(name)
        stage.start()
        stage.end(StageState.REUSED)
        stage.text = why
        for display in self._displays:
            display.ended(stage)

    def note(self, text: str) -> None:
        """Say something once, above the stages."""
        for display in self._displays:
            display.note(text)

    def _named(self, name: str) -> StageProgress:
        for stage in self.stages:
            if stage.name == name:
                return stage
        stage = StageProgress(name, self._clock, self._changed)
        self.stages.append(stage)  # the displays hold the same list
        return stage

    def _changed(self, stage: StageProgress) -> None:
        for display in self._displays:
            display.changed(stage)

    def _close(self) -> None:
        if self._open:
            for display in self._displays:
                display.close()
            self._open = False
