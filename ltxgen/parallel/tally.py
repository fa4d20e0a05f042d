"""What moved to a rank, and how long the rank was held up by it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

Span = tuple[torch.cuda.Event, torch.cuda.Event]


@dataclass(eq=False)
class Repeated:
    """What was counted while a CUDA graph was recorded: it happens at each replay."""

    received_bytes: int = 0
    spans: list[Span] = field(default_factory=list)
    replays: int = 0


class Tally:
    """Bytes that this rank received in one kind of exchange, and the seconds that it spent in it.

    On a CPU that is the time of the calls. On a GPU it is the time that the stream they are called on stands still,
    between events that are read only when somebody asks. Both hold the wait for ranks that are late. Of a CUDA graph's
    replays the last one is timed, and counts for those before it since somebody asked.
    """

    def __init__(self) -> None:
        self.received_bytes = 0
        self._seconds = 0.0
        self._spans: list[Span] = []
        self._recording: Repeated | None = None
        self._repeated: list[Repeated] = []

    @contextmanager
    def counting(self, device: torch.device, received_bytes: int = 0) -> Iterator[None]:
        """Count the block's time on `device` and what it receives."""
        if device.type == "cuda":
            recording = self._recording
            start, end = (torch.cuda.Event(enable_timing=True, external=recording is not None) for _ in range(2))
            start.record()
            yield
            end.record()
            (self._spans if recording is None else recording.spans).append((start, end))
        else:
            started = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - started
        if self._recording is None:
            self.received_bytes += received_bytes
        else:
            self._recording.received_bytes += received_bytes

    @contextmanager
    def recording(self) -> Iterator[Repeated]:
        """Keep what is counted in the block for `repeat`: it only happens then."""
        self._recording = Repeated()
        try:
            yield self._recording
        finally:
            self._recording = None

    def repeat(self, recorded: Repeated) -> None:
        """Count what was recorded once more."""
        self.received_bytes += recorded.received_bytes
        recorded.replays += 1
        if recorded not in self._repeated:
            self._repeated.append(recorded)

    @property
    def seconds(self) -> float:
        """Waits for the GPU to come to the last event."""
        self._seconds += _seconds(self._spans)
        self._spans.clear()
        for recorded in self._repeated:
            self._seconds += recorded.replays * _seconds(recorded.spans)
            recorded.replays = 0
        self._repeated.clear()
        return self._seconds


def _seconds(spans: Sequence[Span]) -> float:
    if spans:
        spans[-1][1].synchronize()
    return sum(start.elapsed_time(end) for start, end in spans) / 1000


Communication = dict[str, dict[str, float]]
"""Bytes and seconds by kind of exchange, for the manifest."""


def communication(tallies: dict[str, Tally]) -> Communication:
    """What was counted, without the kinds in which nothing was."""
    counted = {name: (tally.received_bytes, round(tally.seconds, 3)) for name, tally in tallies.items()}
    return {name: {"bytes": size, "seconds": seconds} for name, (size, seconds) in counted.items() if size or seconds}
