"""Steps extrapolated at intervals: which, and from what, with a denoiser whose predictions are known."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ltxgen.config.schema import parse
from ltxgen.diffusion import LatentState, NoiseSource, Pair, ltx_sigmas
from ltxgen.registry import config_of
from ltxgen.reuse.interval import Interval, IntervalConfig, Point, extrapolated
from ltxgen.reuse.protocol import Prediction, Span
from ltxgen.sampler.euler import Euler

SIGMAS = ltx_sigmas(12)
BOTH = Pair(True, True)
VIDEO, AUDIO, LINEAR, SQUARE = torch.randn(4, 1, 6, 8, generator=torch.Generator().manual_seed(0)).unbind(0)


def polynomial(degree: int) -> Callable[[float], Pair[Tensor]]:
    """The x0 of a model whose prediction follows sigma alone."""

    def x0(sigma: float) -> Pair[Tensor]:
        change = sigma * LINEAR * (degree >= 1) + sigma**2 * SQUARE * (degree >= 2)
        return Pair(VIDEO + change, AUDIO - change)

    return x0


def sampled(reuse: Interval | None, x0: Callable[[float], Pair[Tensor]], sigmas: Tensor = SIGMAS) -> Tensor:
    """Both modalities of a walk with Euler, one above the other."""
    start = torch.randn(2, 1, 6, 8, generator=torch.Generator().manual_seed(1))
    states = Pair(*(LatentState.from_tokens(each, torch.zeros(1, 3, 6, 2)) for each in start))

    def denoise(states: Pair[LatentState], sigma: float, step: int) -> Pair[Tensor]:
        if reuse is None:
            return x0(sigma)
        return reuse.predict(step, sigma, lambda: Prediction(x0(sigma), BOTH))

    final = Euler().sample(states, sigmas, denoise, NoiseSource(0))
    return torch.stack([final.video.latents, final.audio.latents])


def test_its_yaml():
    problems = []
    assert parse(config_of("reuse", "interval"), {}, "reuse", problems) == IntervalConfig()
    parse(config_of("reuse", "interval"), {"every": 1, "order": 3, "start": -0.1, "end": 2}, "reuse", problems)
    assert [problem.path for problem in problems] == ["reuse.start", "reuse.end", "reuse.every", "reuse.order"]
    (empty,) = IntervalConfig(start=0.5, end=0.5).problems("stages.base.reuse", 48)
    assert str(empty).startswith("stages.base.reuse.end = 0.5: must be above stages.base.reuse.start")


@pytest.mark.parametrize(
    ("start", "end", "count", "numbers"),
    [
        (0.0, 1.0, 4, range(4)),
        (0.2, 0.9, 30, range(6, 27)),
        (0.1, 0.7, 30, range(3, 21)),  # 0.1 * 30 and 0.7 * 30 are just above 3 and just below 21 in binary
        (0.25, 0.5, 10, range(3, 5)),
        (0.2, 0.9, 1, range(1, 1)),
    ],
)
def test_the_span(start: float, end: float, count: int, numbers: range):
    assert list(Span(start, end).of(count)) == list(numbers)


def test_what_is_computed():
    config = IntervalConfig(every=3, start=0.2, end=0.8)
    computed = [number for number, each in enumerate(config.evaluated([0] * 20)) if each]
    assert computed == [0, 1, 2, 3, 6, 9, 12, 15, 16, 17, 18, 19]
    # Where guidance changes, at 8 and at 11, that evaluation is computed as well.
    ranges = [0] * 8 + [1] * 3 + [2] * 9
    computed = [number for number, each in enumerate(config.evaluated(ranges)) if each]
    assert computed == [0, 1, 2, 3, 6, 8, 9, 11, 12, 15, 16, 17, 18, 19]
    assert config.note(ranges).startswith("interval, an approximation: 6 of 20 evaluations are not computed")


@pytest.mark.parametrize(("order", "every"), [(0, 2), (0, 3), (1, 2), (1, 4), (2, 2), (2, 3)])
def test_predictions_of_its_degree_are_exact(order: int, every: int):
    # A second order needs three points before its first estimate, a first order two.
    reuse = IntervalConfig(every=every, order=order, start=0.25, end=1.0).build([0] * 12)
    exact = sampled(None, polynomial(order))
    torch.testing.assert_close(sampled(reuse, polynomial(order)), exact, rtol=1e-4, atol=1e-4)
    assert reuse.facts["extrapolated"] >= 4
    assert sum(reuse.facts.values()) == 12
    lower = IntervalConfig(every=every, order=max(order - 1, 0), start=0.25, end=1.0).build([0] * 12)
    assert order == 0 or (sampled(lower, polynomial(order)) - exact).abs().max() > 1e-3


def test_estimates_are_those_of_the_polynomial():
    points = [Point(0, sigma, polynomial(2)(sigma).video) for sigma in (0.9, 0.7, 0.6)]
    torch.testing.assert_close(extrapolated(points, 0.45), polynomial(2)(0.45).video)
    torch.testing.assert_close(extrapolated(points[1:], 0.5), 2 * points[2].x0 - points[1].x0)
    assert torch.equal(extrapolated(points[:1], 0.1), points[0].x0)
    half = [Point(0, point.sigma, point.x0.bfloat16()) for point in points]
    assert extrapolated(half, 0.5).dtype == torch.bfloat16


def test_order_zero_with_euler_is_a_coarser_schedule():
    """What docs/approximations.md says of it, with predictions that follow the latents."""

    def walk(reuse: Interval | None, sigmas: Tensor) -> Tensor:
        state = LatentState.from_tokens(VIDEO, torch.zeros(1, 3, 6, 2))

        def denoise(states: Pair[LatentState], sigma: float, step: int) -> Pair[Tensor]:
            x0 = states.map(lambda each: torch.tanh(each.latents * (1 + sigma)))
            return x0 if reuse is None else reuse.predict(step, sigma, lambda: Prediction(x0, BOTH))

        return Euler().sample(Pair(state, None), sigmas, denoise, NoiseSource(0)).video.latents

    reuse = IntervalConfig(every=3, order=0, start=0.0, end=1.0).build([0] * 12)
    coarse = torch.cat([SIGMAS[:-1:3], SIGMAS[-1:]])
    torch.testing.assert_close(walk(reuse, SIGMAS), walk(None, coarse), rtol=1e-4, atol=1e-5)


def test_nothing_is_extrapolated_across_another_guidance():
    config = IntervalConfig(every=2, order=1, start=0.0, end=1.0)
    ranges = [0, 0, 0, 0, 1, 1]
    reuse = config.build(ranges)
    level = itertools.count(1.0)

    def evaluate() -> Prediction:
        return Prediction(Pair(torch.full((1, 1, 1), next(level)), None), BOTH)

    found = [reuse.predict(number, 1 - number / 10, evaluate).video.item() for number in range(6)]
    # 1, the same again, 2, a line through both, then the other guidance: its first value alone.
    assert found == pytest.approx([1, 1, 2, 2.5, 3, 3])


def test_what_guidance_repeats_is_no_point():
    reuse = IntervalConfig(every=2, order=1, start=0.0, end=1.0).build([0] * 6)
    sound = torch.ones(1, 1, 1)

    def predict(number: int, is_new: bool) -> Tensor:
        x0 = Pair(VIDEO * number, sound * number if is_new else sound * 0)
        return reuse.predict(number, 1 - number / 10, lambda: Prediction(x0, Pair(True, is_new))).audio

    assert predict(0, True) == 0  # a point at 1.0
    assert predict(1, True) == 0  # repeats it
    assert predict(2, False) == 0  # guidance repeats it: no point
    assert predict(3, True) == 0
    assert predict(4, True) == 4  # the second point, at 0.6
    assert predict(5, True).item() == pytest.approx(5)
