"""What guidance is: which passes of the transformer a step needs, and one prediction made of theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from ltxgen.config.errors import Problem
from ltxgen.diffusion.numerics import Numerics
from ltxgen.diffusion.pair import Pair
from ltxgen.models.transformer import Perturbation


@dataclass(frozen=True)
class Pass:
    """One call of the transformer: whose contexts it reads and what is left out.

    `enabled` is False for a modality whose prediction this step doesn't take: the model may leave its layers out.
    """

    name: Literal["text", "negative", "stg", "isolated"]
    context: Literal["positive", "negative"]
    perturbation: Perturbation
    enabled: Pair[bool]


class Guidance(Protocol):
    """The guidance of one noise level. Every pass of a step sees the same latents and timesteps. Stateless: the caller
    keeps the last prediction."""

    def passes(self, step: int) -> list[Pass]:
        """The passes of a step (counted from 0), in the order their results are combined; may be empty."""
        ...

    def combine(self, results: Sequence[Pair[Tensor]], step: int, previous: Pair[Tensor] | None = None) -> Pair[Tensor]:
        """Guided x0 from the passes' x0 (B, T, C), and from the last guided x0 for a modality that sits out."""
        ...


class GuidanceByLevel(Protocol):
    """The guidance of a whole stage."""

    @property
    def every(self) -> Sequence[Guidance]:
        """All that may apply at some noise level."""
        ...

    def at(self, sigma: float) -> Guidance:
        """What applies to a step that starts at `sigma`."""
        ...


class GuidanceConfig(Protocol):
    """A guidance's YAML."""

    def build(self, numerics: Numerics) -> GuidanceByLevel: ...

    def problems(self, path: str, num_blocks: int) -> list[Problem]:
        """What doesn't fit a transformer of `num_blocks` blocks; `path` is where this config stands."""
        ...
