"""Ancestral Euler on a rectified flow: each step goes further down than its end, and noise leads back up to it.

With (1 - sigma)·x0 + sigma·noise the state at sigma, the way up scales it so that its share of x0 is right, and adds
the noise that is then missing. Ancestral sampling as of k-diffusion (https://github.com/crowsonkb/k-diffusion), made
for flows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from torch import Tensor

from ltxgen.config.schema import UnitFloat
from ltxgen.diffusion.latents import LatentState, blend_clean
from ltxgen.diffusion.noise import NoiseSource
from ltxgen.diffusion.pair import Pair
from ltxgen.registry import register
from ltxgen.sampler.protocol import Denoise, Evaluation, Memory, OnStep, one_a_step


@register("sampler", "euler_ancestral")
@dataclass(frozen=True)
class EulerAncestralConfig:
    """`eta`: how much of a step's noise is fresh, from 0 (plain Euler) to 1."""

    eta: UnitFloat = 1.0

    def build(self) -> EulerAncestral:
        return EulerAncestral(self.eta)


@dataclass(frozen=True)
class EulerAncestral:
    """Draws from the run's own noise, so that another seed adds other noise."""

    eta: float

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
            advance = partial(self._advance, noise=noise, sigma=sigma, next_sigma=next_sigma)
            states = states.map(advance, x0)
            if on_step is not None:
                on_step(step, states)
        return states

    def _advance(
        self, state: LatentState, x0: Tensor, noise: NoiseSource, sigma: float, next_sigma: float
    ) -> LatentState:
        x0 = blend_clean(x0, state)
        if next_sigma == 0:
            return state.with_(latents=x0)
        drawn = noise.draw(state.latents.shape)
        return state.with_(latents=ancestral_step(state, x0, drawn, sigma, next_sigma, self.eta))


def ancestral_step(
    state: LatentState, x0: Tensor, noise: Tensor, sigma: float, next_sigma: float, eta: float
) -> Tensor:
    """The latents (B, T, C) at `next_sigma`, above 0. Each token moves at its own noise level, the mask times sigma's,
    so a given token stays as it is."""
    down = next_sigma * (1 + (next_sigma / sigma - 1) * eta)
    x, x0, mask = state.latents.float(), x0.float(), state.denoise_mask
    lowered = x0 + down / sigma * (x - x0)
    scale = (1 - mask * next_sigma) / (1 - mask * down)
    missing = mask * (next_sigma**2 - (down * scale) ** 2).clamp(min=0).sqrt()
    return (scale * lowered + missing * noise.float()).to(state.latents.dtype)
