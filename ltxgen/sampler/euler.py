"""Euler: first order, one evaluation a step.

The official `EulerDiffusionStep` (ltx_core/components/diffusion_steps.py): fp32 arithmetic, with velocity and latents
each rounded to the run's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from torch import Tensor

from ltxgen.diffusion.latents import LatentState, blend_clean, to_velocity
from ltxgen.diffusion.noise import NoiseSource
from ltxgen.diffusion.pair import Pair
from ltxgen.registry import register
from ltxgen.sampler.protocol import Denoise, Evaluation, Memory, OnStep, one_a_step


@register("sampler", "euler")
@dataclass(frozen=True)
class EulerConfig:
    """Nothing to choose."""

    def build(self) -> Euler:
        return Euler()


class Euler:
    """x at the next sigma = x + v·(next sigma - sigma), with v towards the predicted x0."""

    def evaluations(self, sigmas: Sequence[float]) -> Sequence[Evaluation]:
        return one_a_step(sigmas)

    def sample(
        self,
        states: Pair[LatentState],
        sigmas: Tensor,
        denoise: Denoise,
        noise: NoiseSource,
        on_step: OnStep | None = None,
        *,
        start: int = 0,
        memory: Memory | None = None,
    ) -> Pair[LatentState]:
        for step, (sigma, next_sigma) in enumerate(pairwise(sigmas.tolist()[start:]), start):
            x0 = denoise(states, sigma, step)
            states = states.map(partial(_advance, sigma=sigma, next_sigma=next_sigma), x0)
            if on_step is not None:
                on_step(step, states)
        return states


def _advance(state: LatentState, x0: Tensor, sigma: float, next_sigma: float) -> LatentState:
    return state.with_(latents=euler_step(state.latents, blend_clean(x0, state), sigma, next_sigma))


def euler_step(latents: Tensor, x0: Tensor, sigma: float, next_sigma: float) -> Tensor:
    """One step of latents (B, T, C) towards x0. The sigmas must be fp32 values, so that their difference is too."""
    # The official code rounds the velocity on the way; the last step, to sigma 0, is therefore not exactly x0.
    velocity = to_velocity(latents, x0, sigma)
    return (latents.float() + velocity.float() * (next_sigma - sigma)).to(latents.dtype)
