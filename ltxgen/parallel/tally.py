"""What moved to a rank, and how long the rank was held up by it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Tally:
    """Bytes that this rank received in one kind of exchange, and the seconds that it spent in it.

    On a CPU that is the time of the calls. On a GPU it is the time that the stream they are called on stands still,
    between events that are read only when somebody asks. Both hold the wait for ranks that are late.
    """

    def __init__(self) -> None:
        self.received_bytes = 0
        self._seconds = 0.0
        self._spans: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def counting(self, device: torch.device, received_bytes: int = 0) -> Iterator[None]:
        """Count the block's time on `device` and what it receives."""
        self.received_bytes += received_bytes
        if device.type == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            yield
            end.record()
            self._spans.append((start, end))
        else:
            started = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - started

    @property
    def seconds(self) -> float:
        """Waits for the GPU to come to the last event."""
        if self._spans:
            self._spans[-1][1].synchronize()
            self._seconds += sum(start.elapsed_time(end) for start, end in self._spans) / 1000
            self._spans.clear()
        return self._seconds


Communication = dict[str, dict[str, float]]
"""Bytes and seconds by kind of exchange, for the manifest."""


def communication(tallies: dict[str, Tally]) -> Communication:
    """What was counted, without the kinds in which nothing was."""
    counted = {name: (tally.received_bytes, round(tally.seconds, 3)) for name, tally in tallies.items()}
    return {name: {"bytes": size, "seconds": seconds} for name, (size, seconds) in counted.items() if size or seconds}
