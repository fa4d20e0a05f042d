"""Guidance that changes with the noise level, as published in https://arxiv.org/abs/2404.07724 for one range.

Agrees with the official `MultiModalGuiderFactory` (ltx_core/components/guiders.py), except that ends are compared as
the fp32 values that sigmas are: 0.725 reaches the step at 0.725.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch

from ltxgen.config.errors import Problem
from ltxgen.config.schema import Check, Kind
from ltxgen.diffusion.numerics import Numerics
from ltxgen.guidance.protocol import Guidance, GuidanceByLevel
from ltxgen.registry import register

Sigma = Annotated[float, Check("must be above 0 and at most 1", lambda sigma: 0 < sigma <= 1)]


@dataclass(frozen=True)
class Range:
    """Noise levels up to and with `up_to`, down to the next smaller range's, and the guidance of their steps."""

    up_to: Sigma
    guidance: Annotated[Any, Kind("guidance")]


@register("guidance", "by_sigma")
@dataclass(frozen=True)
class BySigmaConfig:
    """Named ranges in any order. The one that reaches highest serves all levels above it as well."""

    ranges: Annotated[dict[str, Range], Check("must hold at least one range", bool)]

    def build(self, numerics: Numerics) -> GuidanceBySigma:
        built = [(torch.tensor(each.up_to).item(), each.guidance.build(numerics)) for each in self.ranges.values()]
        return GuidanceBySigma(tuple(sorted(built, key=lambda each: each[0])))

    def problems(self, path: str, num_blocks: int) -> list[Problem]:
        problems = []
        named: dict[float, str] = {}
        for name, each in self.ranges.items():
            where = f"{path}.ranges.{name}"
            problems += each.guidance.problems(f"{where}.guidance", num_blocks)
            if (other := named.setdefault(each.up_to, name)) != name:
                problems.append(Problem(f"{where}.up_to", each.up_to, f"is that of {other} as well; set it to another"))
        return problems


@dataclass(frozen=True)
class GuidanceBySigma:
    """`ranges`: (upper end, guidance), from the lowest."""

    ranges: Sequence[tuple[float, GuidanceByLevel]]

    @property
    def every(self) -> Sequence[Guidance]:
        return [one for _, guidance in self.ranges for one in guidance.every]

    def at(self, sigma: float) -> Guidance:
        reaching = [guidance for up_to, guidance in self.ranges if sigma <= up_to]
        return (reaching or [self.ranges[-1][1]])[0].at(sigma)
