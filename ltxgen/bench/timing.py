"""Medians after warm-up, sides taking turns: what a GPU's clocks and temperature do then meets all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ltxgen.runtime.memory import MemoryMeter

Log = Callable[[str], None]

WARM_UPS, ROUNDS = 2, 5


@dataclass(frozen=True)
class Timing:
    """Milliseconds of each timed call. `peak_bytes` is what the GPU held at most in one call, None on the CPU, where
    only the process as a whole could be measured."""

    milliseconds: tuple[float, ...]
    peak_bytes: int | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.milliseconds)


def alternate(
    sides: Mapping[str, Callable[[], object]],
    device: torch.device,
    log: Log = lambda message: None,
    *,
    warm_ups: int = WARM_UPS,
    rounds: int = ROUNDS,
) -> dict[str, Timing]:
    """Call every side once a round, in order. Each round is logged, so that a run that is cut off has shown it."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    peaks: dict[str, int | None] = dict.fromkeys(sides)
    for number in range(warm_ups + rounds):
        last = {}
        for name, call in sides.items():
            if number == warm_ups - 1:  # the first warm-up compiles, which takes memory of its own
                last[name], peaks[name] = time_with_peak(call, device)
            else:
                last[name] = time_once(call, device)
            if number >= warm_ups:
                times[name].append(last[name])
        label = f"round {number - warm_ups + 1}/{rounds}" if number >= warm_ups else f"warm-up {number + 1}/{warm_ups}"
        log(f"  {label}: " + ", ".join(f"{name} {milliseconds:.1f} ms" for name, milliseconds in last.items()))
    return {name: Timing(tuple(times[name]), peaks[name]) for name in sides}


def time_with_peak(call: Callable[[], object], device: torch.device) -> tuple[float, int | None]:
    """Milliseconds of one call and the GPU's peak memory in bytes."""
    if device.type != "cuda":
        return time_once(call, device), None
    with MemoryMeter(device) as memory:
        milliseconds = time_once(call, device)
    return milliseconds, memory.peak_bytes


def time_once(call: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of one call, until its work on the device is done."""
    if device.type != "cuda":
        started = time.perf_counter()
        call()
        return 1000 * (time.perf_counter() - started)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    start.record()
    call()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end)
