"""Gradient estimation: Euler along a velocity that is extrapolated from the last two.

Permenter and Yuan, https://openreview.net/forum?id=o2ND9v0CeK; agrees with the official
`gradient_estimating_euler_denoising_loop` (ltx_pipelines/utils/samplers.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from torch import Tensor

from ltxgen.config.schema import PositiveFloat
from ltxgen.diffusion.latents import LatentState, blend_clean, to_velocity
from ltxgen.diffusion.noise import NoiseSource
from ltxgen.diffusion.pair import Pair
from ltxgen.registry import register
from ltxgen.sampler.protocol import Denoise, Evaluation, Memory, OnStep, one_a_step


@register("sampler", "gradient_estimation")
@dataclass(frozen=True)
class GradientEstimationConfig:
    """`gamma`: how far to go from the last velocity towards the new one; 1 is plain Euler."""

    gamma: PositiveFloat = 2.0

    def build(self) -> GradientEstimation:
        return GradientEstimation(self.gamma)


@dataclass(frozen=True)
class GradientEstimation:
    """Velocities have the run's dtype; the last step takes the prediction itself."""

    gamma: float

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
        last: Pair[Tensor] = Pair((memory or {}).get("video"), (memory or {}).get("audio"))
        for step, (sigma, next_sigma) in enumerate(pairwise(sigmas.tolist()[start:]), start):
            x0 = states.map(lambda state, x0: blend_clean(x0, state), denoise(states, sigma, step))
            if next_sigma == 0:
                return states.map(_holding, x0)
            velocities = states.map(partial(_velocity, sigma=sigma), x0)
            ahead = velocities.map(self._extrapolated, last)
            states = states.map(partial(_moved, distance=next_sigma - sigma), ahead)
            last = velocities
            if on_step is not None:
                on_step(step, states, {name: each for name, each in vars(last).items() if each is not None})
        return states

    def _extrapolated(self, velocity: Tensor, last: Tensor | None) -> Tensor:
        return velocity if last is None else last + self.gamma * (velocity - last)


def _velocity(state: LatentState, x0: Tensor, sigma: float) -> Tensor:
    return to_velocity(state.latents, x0, sigma)


def _moved(state: LatentState, velocity: Tensor, distance: float) -> LatentState:
    return _holding(state, state.latents.float() + velocity.float() * distance)


def _holding(state: LatentState, latents: Tensor) -> LatentState:
    return state.with_(latents=latents.to(state.latents.dtype))
