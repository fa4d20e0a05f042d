"""When the process, a run and its first step began and ended, on the clock of `time.perf_counter`."""

from __future__ import annotations

import itertools
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import torch

import ltxgen

_STAT = Path("/proc/self/stat")
_START_TICKS = 22  # proc(5): the field's number, counted from 1; the first two are the pid and (the name)
_runs = itertools.count()


def process_start() -> float:
    """When this process started; without /proc, when ltxgen was first imported."""
    try:
        after_name = _STAT.read_text().rpartition(")")[2].split()
        ticks = int(after_name[_START_TICKS - 3])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):  # AttributeError: no such clock on this system
        return ltxgen.IMPORTED_AT
    return time.perf_counter() - age


@dataclass(frozen=True)
class Began:
    """When a run began, and when its planning did."""

    run: float
    planning: float

    @classmethod
    def now(cls) -> Self:
        """Planning begins. The first run of a process began with that; later ones, of a sweep, begin here."""
        now = time.perf_counter()
        return cls(process_start() if next(_runs) == 0 else now, now)


class Moment:
    """Now, in what the device has been given to do so far."""

    def __init__(self) -> None:
        self._event: torch.cuda.Event | None = None
        self._at = time.perf_counter()
        if torch.cuda.is_initialized():
            self._event = torch.cuda.Event(enable_timing=True)
            self._event.record()

    def at(self) -> float:
        """When the device was there. Waits for it, and for all it was given since."""
        if self._event is None:
            return self._at
        now = torch.cuda.Event(enable_timing=True)
        now.record()
        now.synchronize()
        return time.perf_counter() - self._event.elapsed_time(now) / 1000


class _Progress(Protocol):
    def begin(self, num_steps: int, unit: str = ...) -> None: ...
    def advance(self, num_steps: int = ..., note: str = ...) -> None: ...
    def note(self, text: str) -> None: ...


class StepWatch:
    """Passes on what a stage tells of its progress; `first` is when the first step was done, of one that has steps."""

    def __init__(self, progress: _Progress) -> None:
        self._progress = progress
        self._counts_steps = False
        self.first: Moment | None = None

    def begin(self, num_steps: int, unit: str = "step") -> None:
        self._counts_steps = unit == "step"
        self._progress.begin(num_steps, unit)

    def advance(self, num_steps: int = 1, note: str = "") -> None:
        if self._counts_steps and self.first is None:
            self.first = Moment()
        self._progress.advance(num_steps, note)

    def note(self, text: str) -> None:
        self._progress.note(text)
