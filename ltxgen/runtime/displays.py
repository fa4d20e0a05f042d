"""Three ways to show progress, all on stderr: a live table on a terminal, plain lines elsewhere, nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Literal, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ltxgen.runtime.memory import format_bytes
from ltxgen.runtime.progress import Clock, Display, Progress, StageProgress, StageState, SweepProgress

Mode = Literal["auto", "live", "plain", "quiet"]

_WIDE = 110  # columns that leave room for a bar beside the numbers

_MARKS = {
    StageState.WAITING: ("·", "dim"),
    StageState.RUNNING: ("▶", "bold cyan"),
    StageState.DONE: ("✓", "green"),
    StageState.REUSED: ("↻", "green"),
    StageState.FAILED: ("✗", "bold red"),
}


def create_progress(mode: Mode = "auto", stream: TextIO | None = None) -> Progress:
    """A progress on stderr (or `stream`): `auto` is `live` on a terminal that can move its cursor, else `plain`."""
    console = Console(file=stream or sys.stderr)
    if mode == "auto":
        mode = "live" if console.is_terminal and not console.is_dumb_terminal else "plain"
    displays: dict[Mode, Display] = {
        "live": LiveDisplay(console),
        "plain": PlainDisplay(stream),
        "quiet": QuietDisplay(),
    }
    return Progress(displays[mode])


class QuietDisplay:
    """Shows nothing: for scripts, and for every rank but the first."""

    def job(self, sweep: SweepProgress) -> None:
        pass

    def open(self, stages: Sequence[StageProgress]) -> None:
        pass

    def started(self, stage: StageProgress) -> None:
        pass

    def changed(self, stage: StageProgress) -> None:
        pass

    def ended(self, stage: StageProgress) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


class PlainDisplay(QuietDisplay):
    """Lines for logs: one when a stage starts and one when it ends; between them one per tenth of its steps, at most
    one per `shortest_gap` seconds, and one after `longest_gap` seconds without."""

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        shortest_gap: float = 2.0,
        longest_gap: float = 30.0,
        clock: Clock = time.perf_counter,
    ) -> None:
        self._stream = stream
        self._shortest_gap, self._longest_gap, self._clock = shortest_gap, longest_gap, clock
        self._shown_at = 0.0
        self._shown_tenth = 0

    def job(self, sweep: SweepProgress) -> None:
        self.note(_sweep_line(sweep, 0.0))

    def started(self, stage: StageProgress) -> None:
        self._shown_at, self._shown_tenth = self._clock(), 0
        self.note(f"{stage.name}: started")

    def changed(self, stage: StageProgress) -> None:
        if not stage.num_steps or not stage.num_done or stage.num_done == stage.num_steps:
            self._shown_tenth = 0
            return
        now, tenth = self._clock(), stage.num_done * 10 // stage.num_steps
        waited = now - self._shown_at
        if waited >= self._longest_gap or (tenth > self._shown_tenth and waited >= self._shortest_gap):
            self._shown_at, self._shown_tenth = now, tenth
            parts = [f"{stage.num_done}/{stage.num_steps} {stage.unit}s", _speed(stage), _left(stage), stage.text]
            self.note(f"{stage.name}: {', '.join(part for part in parts if part)}")

    def ended(self, stage: StageProgress) -> None:
        if stage.state is StageState.REUSED:
            self.note(f"{stage.name}: reused ({stage.text})")
            return
        parts = [f"{stage.state.value} after {stage.seconds:.1f} s", _peak(stage, "peak memory ")]
        self.note(f"{stage.name}: {', '.join(part for part in parts if part)}")

    def note(self, text: str) -> None:
        print(text, file=self._stream or sys.stderr, flush=True)  # looked up now: stderr may have been redirected


class LiveDisplay(QuietDisplay):
    """A table of all stages, redrawn four times a second; in a sweep, below it how far that is."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stages: Sequence[StageProgress] = ()
        self._live: Live | None = None
        self._sweep: SweepProgress | None = None
        self._job_started = 0.0

    def job(self, sweep: SweepProgress) -> None:
        self._sweep, self._job_started = sweep, time.perf_counter()

    def open(self, stages: Sequence[StageProgress]) -> None:
        self._stages = stages
        # Prints to a terminal go above the table; a piped stdout is left alone, or results would land on stderr.
        self._live = Live(
            get_renderable=self._view, console=self._console, refresh_per_second=4, redirect_stdout=sys.stdout.isatty()
        )
        self._live.start()

    def note(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _view(self) -> RenderableType:
        if self._sweep is None:
            return self._table()
        line = _sweep_line(self._sweep, time.perf_counter() - self._job_started)
        return Group(self._table(), Text(line, style="dim"))

    def _table(self) -> Table:
        wide = self._console.width >= _WIDE
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)  # state and name
        if wide:
            table.add_column(width=24)  # bar
        for _ in range(4):  # steps, speed, time, memory
            table.add_column(justify="right", no_wrap=True)
        table.add_column(ratio=1, overflow="ellipsis", no_wrap=True)  # current pass
        for stage in self._stages:
            mark, *cells = _row(stage)
            table.add_row(mark, *([_bar(stage)] if wide else []), *cells)
        return table


def _sweep_line(sweep: SweepProgress, elapsed: float) -> str:
    left = sweep.seconds_left(elapsed)
    rest = "" if left is None else f", {_clock_text(left)} left in all"
    return f"job {sweep.name}: {sweep.num_ended} of {sweep.num_jobs} done{rest}"


def _row(stage: StageProgress) -> list[Text]:
    mark, style = _MARKS[stage.state]
    running = stage.state is StageState.RUNNING
    steps = f"{stage.num_done}/{stage.num_steps}" if stage.num_steps else ""
    elapsed = "" if stage.state in (StageState.WAITING, StageState.REUSED) else _clock_text(stage.seconds)
    return [
        Text(f"{mark} {stage.name}", style=style),
        Text(steps),
        Text(_speed(stage)),
        Text(" ".join(part for part in (elapsed, _left(stage) if running else "") if part)),
        Text(_peak(stage)),
        Text(stage.text, style="dim"),
    ]


def _bar(stage: StageProgress) -> ProgressBar | Text:
    if stage.state is not StageState.RUNNING:
        return Text("")
    if stage.num_steps:
        return ProgressBar(total=stage.num_steps, completed=stage.num_done)
    return ProgressBar(total=None, pulse=True)


def _speed(stage: StageProgress) -> str:
    rate = stage.steps_per_second
    if not rate:
        return ""
    return f"{rate:.2f} {stage.unit}s/s" if rate >= 1 else f"{1 / rate:.2f} s/{stage.unit}"


def _left(stage: StageProgress) -> str:
    left = stage.seconds_left
    return "" if left is None else f"{_clock_text(left)} left"


def _peak(stage: StageProgress, label: str = "") -> str:
    return f"{label}{format_bytes(stage.memory.peak_bytes)}" if stage.memory else ""


def _clock_text(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
