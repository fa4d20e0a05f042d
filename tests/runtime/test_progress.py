from __future__ import annotations

import io
import os
import re
import subprocess
import sys

import pytest
from rich.console import Console

from ltxgen.runtime import LiveDisplay, PlainDisplay, Progress, QuietDisplay, StageState, create_progress
from ltxgen.runtime.progress import SweepProgress


class HandClock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class FixedMemory:
    peak_bytes = 3 * 2**30


def plain(shortest_gap: float = 2.0) -> tuple[Progress, HandClock, io.StringIO]:
    clock, stream = HandClock(), io.StringIO()
    return Progress(PlainDisplay(stream, shortest_gap=shortest_gap, clock=clock), clock), clock, stream


def test_plain_lines():
    progress, clock, stream = plain()
    with progress:
        progress.plan(["prompt", "base"])
        with progress.stage("prompt"):
            clock.now += 1.5
        with progress.stage("base", FixedMemory()) as stage:
            stage.begin(30)
            clock.now += 10  # the first step compiles
            stage.advance()
            for step in range(2, 31):
                clock.now += 1
                stage.advance(note="pass 1" if step == 5 else "")
    assert stream.getvalue().splitlines() == [
        "prompt: started",
        "prompt: done after 1.5 s",
        "base: started",
        "base: 3/30 steps, 1.00 steps/s, 0:27 left",
        "base: 6/30 steps, 1.00 steps/s, 0:24 left",
        "base: 9/30 steps, 1.00 steps/s, 0:21 left",
        "base: 12/30 steps, 1.00 steps/s, 0:18 left",
        "base: 15/30 steps, 1.00 steps/s, 0:15 left",
        "base: 18/30 steps, 1.00 steps/s, 0:12 left",
        "base: 21/30 steps, 1.00 steps/s, 0:09 left",
        "base: 24/30 steps, 1.00 steps/s, 0:06 left",
        "base: 27/30 steps, 1.00 steps/s, 0:03 left",
        "base: done after 39.0 s, peak memory 3.0 GiB",
    ]


def test_plain_lines_are_rare_for_fast_steps_and_regular_for_slow_ones():
    progress, clock, stream = plain()
    with progress.stage("fast") as stage:
        stage.begin(1000)
        for _ in range(1000):
            clock.now += 0.001
            stage.advance()
    assert len(stream.getvalue().splitlines()) == 2
    with progress.stage("slow") as stage:
        stage.begin(100, unit="tile")
        for _ in range(3):
            clock.now += 40
            stage.advance(note="left edge")
    assert stream.getvalue().splitlines()[3:6] == [
        "slow: 1/100 tiles, 40.00 s/tile, 1:06:00 left, left edge",
        "slow: 2/100 tiles, 40.00 s/tile, 1:05:20 left, left edge",
        "slow: 3/100 tiles, 40.00 s/tile, 1:04:40 left, left edge",
    ]


def test_a_second_series_of_steps_starts_again():
    progress, clock, stream = plain()
    with progress.stage("decode") as stage:
        for _ in range(2):
            stage.begin(4)
            for _ in range(4):
                clock.now += 5
                stage.advance()
    assert sum("decode: 1/4" in line for line in stream.getvalue().splitlines()) == 2


def test_states_seconds_failures_and_notes():
    progress, clock, stream = plain()
    progress.plan(["prompt", "base", "write"])
    prompt, base, write = progress.stages
    progress.reused("prompt", "stored by an earlier run")

    def fail_after_two_seconds():
        with progress.stage("base"):
            clock.now += 2
            assert base.state is StageState.RUNNING
            assert base.seconds == 2
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_after_two_seconds()
    clock.now += 50
    progress.note("attention: flash is not installed")
    assert [stage.state for stage in (prompt, base, write)] == [
        StageState.REUSED,
        StageState.FAILED,
        StageState.WAITING,
    ]
    assert (base.seconds, write.seconds) == (2, 0)
    assert stream.getvalue().splitlines() == [
        "prompt: reused (stored by an earlier run)",
        "base: started",
        "base: failed after 2.0 s",
        "attention: flash is not installed",
    ]


def test_speed_leaves_out_the_first_step():
    progress, clock, _ = plain()
    with progress.stage("base") as stage:
        assert stage.steps_per_second is None
        stage.begin(10)
        clock.now += 60
        stage.advance()
        assert stage.steps_per_second == pytest.approx(1 / 60)
        clock.now += 4
        stage.advance(2)
        assert stage.steps_per_second == pytest.approx(0.5)
        assert stage.seconds_left == pytest.approx(14)


def test_the_live_table_shows_every_stage():
    stream, clock = io.StringIO(), HandClock()
    console = Console(file=stream, force_terminal=True, width=120, color_system=None)
    progress = Progress(LiveDisplay(console), clock)
    with progress:
        progress.plan(["prompt", "base", "write"])
        with progress.stage("prompt", FixedMemory()):
            clock.now += 65
        with progress.stage("base") as stage:
            stage.begin(4)
            for _ in range(3):
                clock.now += 2
                stage.advance()
            stage.note("pass 2 of 4")
            progress.note("a [note]")
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert "a [note]" in text
    last = text[text.rindex("✓ prompt") :]
    assert re.search(r"✓ prompt +1:05 +3\.0 GiB", last)
    assert re.search(r"✓ base +3/4 +2\.00 s/step +0:06", last)
    assert "· write" in last
    assert stream.getvalue().rstrip().endswith("\x1b[?25h"), "the cursor is shown again"


@pytest.mark.parametrize(("width", "bar"), [(120, "━+ .*"), (80, "")])
def test_the_live_table_while_a_stage_runs(width, bar):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    clock, display = HandClock(), LiveDisplay(console)
    progress = Progress(display, clock)
    with progress:
        progress.plan(["decode_video"])
        with progress.stage("decode_video", FixedMemory()) as stage:
            stage.begin(4)
            clock.now += 3
            stage.advance(note="pass 2 of 4")
            with console.capture() as capture:
                console.print(display._table())
    assert re.search(rf"▶ decode_video +{bar}1/4 +3\.00 s/step +0:03 0:09 left +3\.0 GiB +pass 2 of 4", capture.get())


def test_quiet_says_nothing(capsys):
    progress = create_progress("quiet")
    with progress:
        progress.plan(["base"])
        with progress.stage("base") as stage:
            stage.begin(1)
            stage.advance()
        progress.note("not shown")
    assert capsys.readouterr() == ("", "")
    assert stage.state is StageState.DONE


def test_without_a_terminal_lines_go_to_stderr_and_stdout_stays_free():
    script = (
        "from ltxgen.runtime import create_progress\n"
        "with create_progress() as progress:\n"
        "    progress.plan(['base'])\n"
        "    with progress.stage('base'):\n"
        "        print('result')\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "TTY_COMPATIBLE")}
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120, env=environment
    )
    assert result.stdout == "result\n"
    assert result.stderr.splitlines()[0] == "base: started"
    assert "\x1b" not in result.stderr


def test_displays_take_every_message():
    for display in (QuietDisplay(), PlainDisplay(io.StringIO())):
        with Progress(display) as progress:
            progress.plan(["a"])
            progress.plan(["b"])  # the next job of a sweep
            with progress.stage("not planned") as stage:
                stage.note("inside")
            assert [stage.name for stage in progress.stages] == ["b", "not planned"]


def test_time_left_for_a_sweep():
    sweep = SweepProgress("3 (seed=4)", num_jobs=9, num_ended=3, seconds=[10.0, 20.0, 30.0])
    assert sweep.seconds_left() == 6 * 20
    assert sweep.seconds_left(elapsed=15) == 6 * 20 - 15
    assert SweepProgress("3", 9, 3, [20.0], num_workers=2).seconds_left() == 60
    assert SweepProgress("0", 9, 0, []).seconds_left() is None


def test_a_sweeps_lines():
    progress, _, stream = plain()
    progress.job(SweepProgress("0", 2, 0, []))
    progress.job(SweepProgress("1 (seed=4)", 2, 1, [75.0]))
    assert stream.getvalue().splitlines() == ["job 0: 0 of 2 done", "job 1 (seed=4): 1 of 2 done, 1:15 left in all"]


def test_a_sweep_below_the_live_table():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120)
    progress = Progress(LiveDisplay(console))
    with progress:
        progress.job(SweepProgress("1", 2, 1, [75.0]))
        progress.plan(["prompt"])
        with progress.stage("prompt"):
            pass
    assert "job 1: 1 of 2 done, 1:1" in stream.getvalue()
