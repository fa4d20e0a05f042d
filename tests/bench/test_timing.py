"""Sides take turns, and only what comes after the warm-up counts."""

import time

import torch

from ltxgen.bench.timing import alternate

CPU = torch.device("cpu")


def test_sides_take_turns_and_warm_ups_do_not_count():
    called, logged = [], []

    def slow_at_first():
        called.append("a")
        time.sleep(0.05 if len(called) == 1 else 0.001)

    timings = alternate({"a": slow_at_first, "b": lambda: called.append("b")}, CPU, logged.append, warm_ups=1, rounds=3)
    assert called == ["a", "b"] * 4
    assert [len(timing.milliseconds) for timing in timings.values()] == [3, 3]
    assert 1 <= timings["a"].median < 50
    assert timings["b"].median < timings["a"].median
    assert timings["a"].peak_bytes is None
    assert [line.split(":")[0].strip() for line in logged] == ["warm-up 1/1", "round 1/3", "round 2/3", "round 3/3"]


def test_the_median_is_not_moved_by_one_slow_round():
    waits = iter([0, 0.001, 0.05, 0.001])
    timing = alternate({"": lambda: time.sleep(next(waits))}, CPU, warm_ups=1, rounds=3)[""]
    assert timing.median < 40 < max(timing.milliseconds)
