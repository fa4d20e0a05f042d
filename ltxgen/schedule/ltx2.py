"""LTX's own schedule, for any number of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from ltxgen.config.schema import PositiveInt
from ltxgen.diffusion.sigmas import ltx_sigmas
from ltxgen.registry import register


@register("schedule", "ltx2")
@dataclass(frozen=True)
class Ltx2Config:
    """`tokens` shift the levels towards noise: 4096 in the one- and two-stage pipelines whatever the size, the latent's
    own count in HQ."""

    takes_steps: ClassVar[bool] = True

    tokens: Literal["latent"] | PositiveInt = 4096

    def levels(self, steps: int | None, num_tokens: int) -> Sequence[float]:
        assert steps is not None, "the stage refuses this schedule without steps"
        return ltx_sigmas(steps, num_tokens if self.tokens == "latent" else self.tokens).tolist()
