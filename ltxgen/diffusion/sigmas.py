"""Noise schedules: the sigmas a sampler steps through, from the first down to 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

# The shift grows linearly with the token count, through these two (tokens, shift) points.
_SHIFT_POINTS = ((1024, 0.95), (4096, 2.05))
_LAST_SIGMA = 0.1

MIN_STEPS = 2


def ltx_sigmas(steps: int, tokens: int = 4096) -> Tensor:
    """LTX's schedule of `steps` steps, sigma 1 down to 0.1 and then 0: (steps + 1,) fp32.

    Evenly spaced levels, shifted towards noise the more `tokens` there are, then stretched so that the last step starts
    at 0.1. The one- and two-stage pipelines always take 4096 tokens; HQ takes the latent's own count. Agrees with the
    official `LTX2Scheduler`. Raises ValueError where that gives NaN: below two steps, or with so many tokens that every
    level is shifted to 1.
    """
    if steps < MIN_STEPS:
        raise ValueError(f"{steps} steps: must be at least {MIN_STEPS}")
    (tokens_low, shift_low), (tokens_high, shift_high) = _SHIFT_POINTS
    slope = (shift_high - shift_low) / (tokens_high - tokens_low)
    shift = tokens * slope + (shift_low - slope * tokens_low)
    levels = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float32)[:-1]
    sigmas = math.exp(shift) / (math.exp(shift) + (1 / levels - 1))
    if sigmas[-1] >= 1:
        raise ValueError(f"{tokens} tokens: too many for this schedule, every level is shifted to 1")
    stretch = (1 - sigmas[-1]) / (1 - _LAST_SIGMA)
    return torch.cat([1 - (1 - sigmas) / stretch, torch.zeros(1)])


def sigmas_problem(sigmas: Sequence[float]) -> str | None:
    """What is wrong with a schedule given by hand, in words that complete "stages.refine.sigmas = [...]: "; or None."""
    if len(sigmas) < 2:
        return "must hold at least two levels, the first noise level and 0"
    if not all(math.isfinite(sigma) and 0 <= sigma <= 1 for sigma in sigmas):
        return "must hold levels between 0 and 1 only"
    if sigmas[-1] != 0:
        return f"must end in 0, not in {sigmas[-1]}"
    for sigma, following in pairwise(sigmas):
        if following >= sigma:
            return f"must fall strictly, but {following} follows {sigma}"
    return None
