"""res_2s: second order, two evaluations a step, each followed by fresh noise; what the HQ recipe samples with.

Over h = ln(sigma / next sigma) the flow is x' = x0 - x: an exponential Runge-Kutta method of order two (Hochbruck and
Ostermann, https://doi.org/10.1137/040611434) with its middle at h/2, where sigma is the geometric mean, made stochastic
by putting noise in the place of part of what remains. Agrees with the official `res2s_audio_video_denoising_loop`
(ltx_pipelines/utils/samplers.py). Everything but the predictions is computed in fp64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Annotated

import torch
from torch import Tensor

from ltxgen.config.schema import Check
from ltxgen.diffusion.latents import LatentState, blend_clean
from ltxgen.diffusion.noise import NoiseSource, NoiseState
from ltxgen.diffusion.pair import Pair
from ltxgen.registry import register
from ltxgen.sampler.protocol import Denoise, Evaluation, Memory, OnStep

# The last level that is stepped to, as the fp32 value that the official code has; 0 would be infinitely far.
LAST_SIGMA = torch.tensor(0.0011).item()
# Where a step is short and noise still strong, it starts from the point that leads to its middle as renoised.
REANCHORED_BELOW_H = 0.5
REANCHORED_ABOVE_SIGMA = 0.03

Seed = Annotated[int, Check("must be between -2^63 and 2^63 - 1", lambda seed: -(2**63) <= seed < 2**63)]


@register("sampler", "res_2s")
@dataclass(frozen=True)
class Res2sConfig:
    """Seeds of the noise at a step's end and at its middle: the official ones, which don't follow `request.seed`."""

    step_seed: Seed = -1
    substep_seed: Seed = 9999

    def build(self) -> Res2s:
        return Res2s(self.step_seed, self.substep_seed)


@dataclass(frozen=True)
class Res2s:
    """Steps down to `LAST_SIGMA`; the prediction made there is the result."""

    step_seed: int
    substep_seed: int

    def evaluations(self, sigmas: Sequence[float]) -> Sequence[Evaluation]:
        if sigmas[-2] <= LAST_SIGMA:
            raise ValueError(f"steps down to {LAST_SIGMA:.4g} itself, so the level before 0 must be above it")
        made = []
        for step, (sigma, next_sigma) in enumerate(pairwise(_levels(sigmas))):
            # The middle counts as step 0: no skip_step leaves it out.
            made += [Evaluation(sigma, step), Evaluation(math.sqrt(sigma * next_sigma), 0)]
        return [*made, Evaluation(LAST_SIGMA, len(sigmas) - 1)]

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
        own = {name: noise.seeded(seed, torch.float64) for name, seed in vars(self).items()}
        for name, generator in (memory or {}).items():
            own[name].restore(NoiseState(noise.draw_on, generator))
        after_step, after_substep = (partial(_renoise, own[name]) for name in ("step_seed", "substep_seed"))

        def predict(states: Pair[LatentState], sigma: float, step: int) -> Pair[Tensor]:
            x0 = denoise(states, sigma, step)
            return states.map(lambda state, x0: blend_clean(x0, state).double(), x0)

        for step, (sigma, next_sigma) in enumerate(pairwise(_levels(sigmas.tolist())[start:]), start):
            h, middle_sigma = math.log(sigma / next_sigma), math.sqrt(sigma * next_sigma)
            begin = states.map(lambda state: state.latents.double())
            first = predict(states, sigma, step)
            middle = begin.map(partial(_towards, h=h / 2), first)
            middle = states.map(partial(after_substep, sigma=sigma, next_sigma=middle_sigma), begin, middle)
            if h < REANCHORED_BELOW_H and sigma > REANCHORED_ABOVE_SIGMA:
                # The official code iterates to this point a hundred times; the iteration converges to it exactly.
                begin = middle.map(partial(_towards, h=-h / 2), first)
            second = predict(states.map(_holding, middle), middle_sigma, 0)
            end = begin.map(partial(_second_order, h=h), first, second)
            end = states.map(partial(after_step, sigma=sigma, next_sigma=next_sigma), begin, end)
            states = states.map(_holding, end)
            if on_step is not None:
                on_step(step, states, {name: source.state().generator for name, source in own.items()})
        return states.map(_holding, predict(states, LAST_SIGMA, len(sigmas) - 1))


def _levels(sigmas: Sequence[float]) -> Sequence[float]:
    """What is stepped through: the last sigma is 0."""
    return [*sigmas[:-1], LAST_SIGMA]


def _holding(state: LatentState, latents: Tensor) -> LatentState:
    return state.with_(latents=latents.to(state.latents.dtype))


def _towards(x: Tensor, x0: Tensor, h: float) -> Tensor:
    """Where the flow takes x over h if x0 stays the prediction; for h < 0, where it came from."""
    return x0 + math.exp(-h) * (x - x0)


def _second_order(x: Tensor, first: Tensor, second: Tensor, h: float) -> Tensor:
    """x over a whole step h, from the predictions at its start and at its middle."""
    weight = 2 * (h + math.expm1(-h)) / h  # of the middle: 2·h·phi_2(-h), phi_2 of exponential integrators
    return x + (-math.expm1(-h) - weight) * (first - x) + weight * (second - x)


def _renoise(noise: NoiseSource, state: LatentState, x: Tensor, y: Tensor, sigma: float, next_sigma: float) -> Tensor:
    """Put fresh noise in the place of part of y's, which a step from x at `sigma` took to `next_sigma`.

    Of the variance of the noise a quarter is fresh. Given tokens are put back.
    """
    implied_noise = (x - y) / (sigma - next_sigma)
    implied_x0 = x - sigma * implied_noise
    fresh, kept = next_sigma / 2, next_sigma * math.sqrt(3) / 2
    renoised = (1 - next_sigma + kept) * implied_x0 + kept * implied_noise + fresh * _standardized(noise, x)
    return blend_clean(renoised, state)


def _standardized(noise: NoiseSource, like: Tensor) -> Tensor:
    """A draw of mean 0 and deviation 1 in each sample, exactly."""
    drawn = noise.draw(like.shape)
    return (drawn - drawn.mean(dim=(-2, -1), keepdim=True)) / drawn.std(dim=(-2, -1), keepdim=True)
