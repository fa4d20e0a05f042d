"""What moved to a rank, and how long the rank was held up by it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

Span = tuple[torch.cuda.Event, torch.cuda.Event]


@dataclass(eq=False)
class Repeated:
    """What was counted while a CUDA graph was recorded: it happens at each replay."""

    received_bytes: int = 0


class Tally:
    """Bytes that this rank received in one kind of exchange, and the seconds that it spent in it.

    On a CPU that is the time of the calls. On a GPU it is the time that the stream they are called on stands still,
    between events that are read only when somebody asks. Both hold the wait for ranks that are late. What is recorded
    as a CUDA graph is not timed: with events beside its 290 exchanges, each would start 0.2 ms later (two H100s).
    """

    def __init__(self) -> None:
        self.received_bytes = 0
        self._seconds = 0.0
        self._spans: list[Span] = []
        self._recording: Repeated | None = None

    @contextmanager
    def counting(self, device: torch.device, received_bytes: int = 0) -> Iterator[None]:
        """Count the block's time on `device` and what it receives."""
        if self._recording is not None:
            yield
            self._recording.received_bytes += received_bytes
            return
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._spans.append((start, end))
        else:
            started = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - started
        self.received_bytes += received_bytes

    @contextmanager
    def recording(self) -> Iterator[Repeated]:
        """Keep the bytes that are counted in the block for `repeat`: they arrive only then."""
        self._recording = Repeated()
        try:
            yield self._recording
        finally:
            self._recording = None

    def repeat(self, recorded: Repeated) -> None:
        """Count what was recorded once more."""
        self.received_bytes += recorded.received_bytes

    @property
    def seconds(self) -> float:
        """Waits for the GPU to come to the last event."""
        self._seconds += _seconds(self._spans)
        self._spans.clear()
        return self._seconds


def _seconds(spans: Sequence[Span]) -> float:
    if spans:
        spans[-1][1].synchronize()
    return sum(start.elapsed_time(end) for start, end in spans) / 1000


Communication = dict[str, dict[str, float]]
"""Bytes and seconds by kind of exchange, for the manifest. Replays of CUDA graphs are in the bytes alone."""


def communication(tallies: dict[str, Tally]) -> Communication:
    """What was counted, without the kinds in which nothing was."""
    counted = {name: (tally.received_bytes, round(tally.seconds, 3)) for name, tally in tallies.items()}
    return {name: {"bytes": size, "seconds": seconds} for name, (size, seconds) in counted.items() if size or seconds}
