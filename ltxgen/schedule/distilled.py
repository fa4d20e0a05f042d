"""The steps that distilled checkpoints, and the distilled LoRA, were trained for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from ltxgen.registry import register
from ltxgen.schedule.explicit import as_float32

# DISTILLED_SIGMA_VALUES of the official ltx_pipelines/utils/constants.py; its refining stage has the last three steps.
SIGMAS = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0)


@register("schedule", "distilled")
@dataclass(frozen=True)
class DistilledConfig:
    """The 8 steps from noise, or the last 3 of them, to refine."""

    takes_steps: ClassVar[bool] = False

    steps: Literal[8, 3] = 8

    def levels(self, steps: int | None, num_tokens: int) -> Sequence[float]:
        return as_float32(SIGMAS[-self.steps - 1 :])
