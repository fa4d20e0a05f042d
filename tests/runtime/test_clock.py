"""When the process began, as the system tells it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

import ltxgen
from ltxgen.runtime import clock
from ltxgen.runtime.clock import Began, Moment, process_start

SCRIPT = """
import time
from ltxgen.runtime.clock import Began
time.sleep(0.3)
first, second = Began.now(), Began.now()
print(time.perf_counter() - first.run, second.planning - second.run)
"""


@pytest.mark.skipif(not clock._STAT.exists(), reason="needs /proc")
def test_a_run_began_with_its_process_and_later_ones_by_themselves():
    started = time.perf_counter()
    output = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True).stdout
    took = time.perf_counter() - started
    age, second = map(float, output.split())
    assert 0.3 < age < took + 0.05
    assert second == 0


def test_without_proc_a_process_began_when_it_imported_ltxgen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    if clock._STAT.exists():
        assert process_start() <= ltxgen.IMPORTED_AT
    monkeypatch.setattr(clock, "_STAT", tmp_path / "none")
    assert process_start() == ltxgen.IMPORTED_AT


def test_a_moment_is_when_it_was():
    before = time.perf_counter()
    moment = Moment()
    after = time.perf_counter()
    time.sleep(0.02)
    assert before <= moment.at() <= after


def test_planning_begins_now():
    assert Began.now().planning == pytest.approx(time.perf_counter(), abs=0.1)
