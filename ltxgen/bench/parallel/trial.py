"""One stage run by ranks or by one: its steps timed, what it exchanges counted, its result kept."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ltxgen.bench.steps import random_state
from ltxgen.bench.timing import time_with_peak
from ltxgen.diffusion.latents import LatentState
from ltxgen.diffusion.noise import NoiseSource
from ltxgen.diffusion.pair import Pair
from ltxgen.models.transformer import Transformer
from ltxgen.parallel.tally import Communication
from ltxgen.runtime.memory import MemoryMeter
from ltxgen.sampler.protocol import Denoise as Predict
from ltxgen.sampler.protocol import Evaluation, Memory, OnStep, Sampler
from ltxgen.stage.decode_video import DecodeVideo
from ltxgen.stage.denoise import Denoise
from ltxgen.stage.denoiser import Denoiser
from ltxgen.stage.protocol import RunContext

Together = Callable[[], object]
"""Returns when all ranks that take part have called it."""


@dataclass(frozen=True)
class Trial:
    """What one rank saw: milliseconds of each step, and of a step the bytes received and the milliseconds that its
    GPU stood still for them, by kind of exchange. `peak_bytes` is None on the CPU."""

    times: tuple[float, ...]
    received: Mapping[str, float]
    exchange_ms: Mapping[str, float]
    peak_bytes: int | None

    @property
    def ms(self) -> float:
        return statistics.median(self.times)


class TimedSampler:
    """`sampler` with the time of each step, after warm-ups: the first evaluation connects ranks and chooses kernels."""

    def __init__(self, sampler: Sampler, warm_ups: int, together: Together, device: torch.device) -> None:
        self._sampler, self._warm_ups, self._together, self._device = sampler, warm_ups, together, device
        self.times: tuple[float, ...] = ()
        self.exchanged: Communication = {}

    def evaluations(self, sigmas: Sequence[float]) -> Sequence[Evaluation]:
        return self._sampler.evaluations(sigmas)

    def sample(
        self,
        states: Pair[LatentState],
        sigmas: Tensor,
        denoise: Predict,
        noise: NoiseSource,
        on_step: OnStep | None = None,
        *,
        start: int = 0,
        memory: Memory | None = None,
    ) -> Pair[LatentState]:
        assert isinstance(denoise, Denoiser), "a denoising stage samples with its own denoiser"
        for _ in range(self._warm_ups):
            denoise(states, sigmas[0].item(), start)
        before = denoise.parallel.communication
        clock = Clock(self._device)

        def timed(states: Pair[LatentState], sigma: float, step: int) -> Pair[Tensor]:
            clock.mark()
            return denoise(states, sigma, step)

        self._together()
        result = self._sampler.sample(states, sigmas, timed, noise, on_step, start=start, memory=memory)
        clock.mark()
        self.times = clock.intervals()
        self.exchanged = _difference(denoise.parallel.communication, before)
        return result


class Clock:
    """Moments on the device: a step lasts from its start to the next one's."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events: list[torch.cuda.Event] = []
        self._seconds: list[float] = []

    def mark(self) -> None:
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.append(event)
        else:
            self._seconds.append(time.perf_counter())

    def intervals(self) -> tuple[float, ...]:
        """Milliseconds between the moments."""
        if self._device.type == "cuda":
            self._events[-1].synchronize()
            return tuple(a.elapsed_time(b) for a, b in pairwise(self._events))
        return tuple(1000 * (b - a) for a, b in pairwise(self._seconds))


def _difference(after: Communication, before: Communication) -> Communication:
    nothing = {"bytes": 0.0, "seconds": 0.0}
    return {
        kind: {name: value - before.get(kind, nothing)[name] for name, value in counted.items()}
        for kind, counted in after.items()
    }


def try_steps(
    stage: Denoise, transformer: Transformer, context: RunContext, together: Together, warm_ups: int
) -> tuple[Trial, Pair[Tensor]]:
    """Run `stage` from what is the same at random on every rank, after `warm_ups` evaluations that leave no trace in
    its latents, which are whole on each."""
    device = stage.setting.device
    timed = TimedSampler(stage.sampler, warm_ups, together, device)
    running = copy.copy(stage)
    running.sampler = timed
    state = random_state(stage, transformer)
    with MemoryMeter(device) as memory:
        written = running.run(state, {stage.transformer: transformer}, context)
    count = len(timed.times)
    trial = Trial(
        timed.times,
        {kind: each["bytes"] / count for kind, each in timed.exchanged.items()},
        {kind: 1000 * each["seconds"] / count for kind, each in timed.exchanged.items()},
        memory.peak_bytes if device.type == "cuda" else None,
    )
    return trial, Pair(written[f"{stage.name}.video"], written[f"{stage.name}.audio"])


def try_decoding(
    stage: DecodeVideo, decoder: Any, latents: Tensor, context: RunContext, together: Together, rounds: int
) -> tuple[Trial, Tensor | None]:
    """Decode `latents` `rounds` times after a warm-up. The frames (F,H,W,3), uint8, are those of the first rank; others
    have none."""
    chunks: list[Tensor] = []
    reported: dict[str, Communication] = {}
    counting = RunContext(context.folder, context.progress, context.record, reported.__setitem__)

    def decode() -> None:
        chunks.clear()
        (stream,) = stage.run({stage.source: latents}, {"video_decoder": decoder}, counting).values()
        chunks.extend(stream)

    times, peak = [], None
    for _ in range(1 + rounds):
        together()
        milliseconds, peak = time_with_peak(decode, latents.device)
        times.append(milliseconds)
    exchanged = reported.get("communication", {})
    trial = Trial(
        tuple(times[1:]),
        {kind: each["bytes"] for kind, each in exchanged.items()},
        {kind: 1000 * each["seconds"] for kind, each in exchanged.items()},
        peak,
    )
    return trial, torch.cat(chunks) if chunks else None
