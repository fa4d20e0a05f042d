"""Every so many evaluations one is computed, and the predictions in between are extrapolated from the last ones.

The guided x0 of each modality is continued in sigma by the polynomial of degree `order` through the last evaluations:

    x0(sigma) = sum over i of x0(sigma_i) · product over j != i of (sigma - sigma_j) / (sigma_i - sigma_j)

As TaylorSeer (https://arxiv.org/abs/2503.06923) continues features, here at the very output, where no more than a few
latents are kept. In fp32, rounded to the run's dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from torch import Tensor

from ltxgen.config.errors import Problem
from ltxgen.config.schema import Check
from ltxgen.diffusion.pair import Pair
from ltxgen.models.transformer import PassesModel, Transformer
from ltxgen.registry import register
from ltxgen.reuse.protocol import Prediction, Ranks, Span

Every = Annotated[int, Check("must be a whole number of at least 2", lambda every: every >= 2)]


@register("reuse", "interval")
@dataclass(frozen=True)
class IntervalConfig(Span):
    """Of the evaluations in the span those are computed whose number is a multiple of `every`.

    Where guidance changes with the noise level, the first evaluation under another guidance is computed as well, and
    nothing is extrapolated across. The order is lower as long as there are too few points. A modality that guidance
    leaves out (`skip_step`) of an evaluation that is computed gets no point there.
    """

    every: Every = 2
    order: Literal[0, 1, 2] = 1

    kept_hidden: ClassVar = 0
    decides: ClassVar = False

    def build(self, ranges: Sequence[int]) -> Interval:
        return Interval(self.order, ranges, self.evaluated(ranges))

    def evaluated(self, ranges: Sequence[int]) -> Sequence[bool]:
        span = self.of(len(ranges))
        return [
            number not in span or number % self.every == 0 or ranges[number] != ranges[number - 1]
            for number in range(len(ranges))
        ]

    def note(self, ranges: Sequence[int]) -> str:
        left_out = self.evaluated(ranges).count(False)
        return (
            f"interval, an approximation: {left_out} of {len(ranges)} evaluations are not computed but extrapolated "
            f"(order {self.order})"
        )

    def problems(self, path: str, num_blocks: int) -> list[Problem]:
        return self.span_problems(path)


@dataclass(frozen=True)
class Point:
    """A modality's guided x0 (B, T, C) at a noise level, and which guidance that was."""

    guidance: int
    sigma: float
    x0: Tensor


class Interval:
    """`state`: of each modality, the last points under one guidance."""

    def __init__(self, order: int, ranges: Sequence[int], evaluated: Sequence[bool]) -> None:
        self.order = order
        self.ranges = ranges
        self.evaluated = evaluated
        self.state: Any = Pair[tuple[Point, ...]]((), ())
        self._calls = {True: 0, False: 0}

    def wrap(self, transformer: Transformer, ranks: Ranks) -> PassesModel:
        return transformer

    def predict(self, number: int, sigma: float, evaluate: Callable[[], Prediction]) -> Pair[Tensor]:
        guidance = self.ranges[number]
        self._calls[self.evaluated[number]] += 1
        if not self.evaluated[number]:
            return self.state.map(lambda points: extrapolated(_under(guidance, points) or points[-1:], sigma))
        x0, is_new = evaluate()

        def with_point(x0: Tensor, points: tuple[Point, ...], is_new: bool) -> tuple[Point, ...]:
            return (*_under(guidance, points), Point(guidance, sigma, x0))[-self.order - 1 :] if is_new else points

        self.state = x0.map(with_point, self.state, is_new)
        return x0

    @property
    def facts(self) -> Mapping[str, Any]:
        return {"computed": self._calls[True], "extrapolated": self._calls[False]}


def _under(guidance: int, points: Sequence[Point]) -> tuple[Point, ...]:
    return tuple(point for point in points if point.guidance == guidance)


def extrapolated(points: Sequence[Point], sigma: float) -> Tensor:
    """x0 at `sigma` by the polynomial through `points`, whose noise levels differ."""
    weights = [
        math.prod((sigma - other.sigma) / (point.sigma - other.sigma) for other in points if other is not point)
        for point in points
    ]
    total: Any = sum(weight * point.x0.float() for weight, point in zip(weights, points, strict=True))
    return total.to(points[0].x0.dtype)
