"""Noise levels given one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ltxgen.diffusion.sigmas import sigmas_problem
from ltxgen.registry import register


@register("schedule", "explicit")
@dataclass(frozen=True)
class ExplicitConfig:
    """Levels between 0 and 1, falling strictly down to 0."""

    takes_steps: ClassVar[bool] = False

    sigmas: tuple[float, ...]

    def levels(self, steps: int | None, num_tokens: int) -> Sequence[float]:
        if wrong := sigmas_problem(self.sigmas):
            raise ValueError(wrong)
        return as_float32(self.sigmas)


def as_float32(sigmas: Sequence[float]) -> Sequence[float]:
    """Each level as its nearest fp32 value."""
    return torch.tensor(sigmas, dtype=torch.float32).tolist()
