"""How far a denoising loop is, kept every few steps, so that an interrupted run goes on from there bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ltxgen.diffusion.latents import LatentState
from ltxgen.diffusion.noise import NoiseSource, NoiseState
from ltxgen.diffusion.pair import Pair
from ltxgen.stage.denoiser import Denoiser
from ltxgen.stage.protocol import Steps


@dataclass(frozen=True)
class Checkpoint:
    """A walk between two steps: all that the rest of it depends on and that its beginning doesn't give again.

    `num_steps` done, the latents then, guidance's last prediction and the number of them so far, the run's generator,
    and what the sampler and the reuse carry from step to step.
    """

    num_steps: int
    latents: Pair[Tensor]
    previous: Pair[Tensor] | None
    num_calls: int
    noise: NoiseState
    memory: dict[str, Tensor]
    reuse: Any


class Checkpoints:
    """An `OnStep` that saves every `every` steps into `steps`, but the last one, after which the stage itself is
    stored."""

    def __init__(self, every: int, steps: Steps, num_steps: int, denoiser: Denoiser, noise: NoiseSource) -> None:
        self.every = every
        self.steps = steps
        self.num_steps = num_steps
        self.denoiser = denoiser
        self.noise = noise

    def resume(self, states: Pair[LatentState]) -> tuple[Pair[LatentState], dict[str, Any]]:
        """Where the walk starts: at its beginning, `states`, or after the last saved step, with what the sampler needs
        to be told then."""
        saved: Checkpoint | None = self.steps.load()
        if saved is None:
            return states, {}
        self.denoiser.previous, self.denoiser.calls = saved.previous, saved.num_calls
        self.denoiser.reuse.state = saved.reuse
        self.noise.restore(saved.noise)
        states = states.map(lambda state, latents: state.with_(latents=latents), saved.latents)
        return states, {"start": saved.num_steps, "memory": saved.memory}

    def __call__(self, step: int, states: Pair[LatentState], memory: Mapping[str, Tensor] | None = None) -> None:
        done = step + 1
        if done % self.every or done == self.num_steps:
            return
        latents = states.map(lambda state: state.latents)
        noise, denoiser = self.noise.state(), self.denoiser
        carried = dict(memory or {}), denoiser.reuse.state
        self.steps.save(Checkpoint(done, latents, denoiser.previous, denoiser.calls, noise, *carried))
