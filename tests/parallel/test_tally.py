"""Counting what arrives at a rank, and how long it is held up."""

from __future__ import annotations

import time

import pytest
import torch

from ltxgen.parallel.tally import Tally, communication

CPU = torch.device("cpu")


def test_bytes_and_seconds_add_up():
    tally = Tally()
    for size in (3, 4):
        with tally.counting(CPU, size):
            time.sleep(0.02)
    time.sleep(0.1)
    assert tally.received_bytes == 7
    assert 0.04 <= tally.seconds < 0.1


def test_kinds_in_which_nothing_moved_are_left_out():
    ring, guidance, gather = Tally(), Tally(), Tally()
    with ring.counting(CPU, 10):
        pass
    with guidance.counting(CPU):  # a rank that only sends spends time
        time.sleep(0.002)
    found = communication({"ring": ring, "guidance": guidance, "gather": gather})
    assert list(found) == ["ring", "guidance"]
    assert (found["ring"]["bytes"], found["guidance"]["bytes"]) == (10, 0)
    assert found["guidance"]["seconds"] >= 0.002


def test_what_is_recorded_counts_when_it_is_repeated():
    tally = Tally()
    with tally.recording() as recorded, tally.counting(CPU, 5):
        time.sleep(0.002)
    assert (tally.received_bytes, tally.seconds) == (0, 0)
    for _ in range(3):
        tally.repeat(recorded)
    with tally.counting(CPU, 1):
        pass
    assert tally.received_bytes == 16


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_streams_time_counts_and_nothing_waits():
    tally, device = Tally(), torch.device("cuda")
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(2):
        with tally.counting(device, 5):
            torch.cuda._sleep(100_000_000)  # cycles: some 0.05 s
        torch.cuda._sleep(100_000_000)  # not counted
    queued = time.perf_counter() - started
    counted = tally.seconds
    all_of_it = time.perf_counter() - started
    assert queued < 0.5 * counted
    assert 0.3 * all_of_it < counted < 0.9 * all_of_it
    assert tally.seconds == counted
