"""res_2s against its published formulas, step by step in plain fp64."""

import itertools
import math

import pytest
import torch

from ltxgen.config.schema import parse
from ltxgen.diffusion import LatentState, NoiseSource, Pair, ltx_sigmas
from ltxgen.registry import config_of
from ltxgen.sampler.protocol import Evaluation
from ltxgen.sampler.res_2s import LAST_SIGMA, Res2sConfig, _second_order, _towards

NOISE = NoiseSource(7)
REFINING = torch.tensor([0.909375, 0.725, 0.421875, 0.0])


def random_state(num_tokens=16, dtype=torch.float32, seed=0) -> LatentState:
    latents = torch.randn(1, num_tokens, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return LatentState.from_tokens(latents, torch.zeros(1, 3, num_tokens, 2))


def predicted(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """A clean prediction that depends on both, as a model's does."""
    return torch.tanh(x * (1 + sigma)) - 0.3 * sigma


def denoise(states, sigma, step):
    return states.map(lambda state: predicted(state.latents.double(), sigma).to(state.latents.dtype))


def standard(generator: torch.Generator, shape: torch.Size) -> torch.Tensor:
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    noise = (noise - noise.mean()) / noise.std()
    return (noise - noise.mean(dim=(-2, -1), keepdim=True)) / noise.std(dim=(-2, -1), keepdim=True)


def by_the_formulas(latents: list[torch.Tensor], sigmas: list[float]) -> list[torch.Tensor]:
    """Both modalities, coefficients and the hundred refinements of the anchor as published."""
    step_generator = torch.Generator().manual_seed(-1)
    substep_generator = torch.Generator().manual_seed(9999)

    def phi_1(z: float) -> float:
        return (math.exp(z) - 1) / z

    def phi_2(z: float) -> float:
        return (math.exp(z) - 1 - z) / z**2

    def sde(a, y, sigma, following, generator):
        up = 0.5 * following
        residual = math.sqrt(following**2 - up**2)
        alpha = (1 - following) + residual
        down = residual / alpha
        eps = (a - y) / (sigma - following)
        return alpha * ((a - sigma * eps) + down * eps) + up * standard(generator, a.shape)

    levels = [*sigmas[:-1], LAST_SIGMA]
    x = [tensor.double() for tensor in latents]
    for sigma, following in itertools.pairwise(levels):
        h = -math.log(following / sigma)
        a21, b2 = 0.5 * phi_1(-h / 2), 2 * phi_2(-h)
        b1 = phi_1(-h) - b2
        middle_sigma = math.sqrt(sigma * following)
        anchors = list(x)
        d1 = [predicted(each, sigma).float().double() for each in x]
        e1 = [d - a for d, a in zip(d1, anchors, strict=True)]
        middles = [
            sde(a, a + h * a21 * e, sigma, middle_sigma, substep_generator) for a, e in zip(anchors, e1, strict=True)
        ]
        if h < 0.5 and sigma > 0.03:
            for _ in range(100):
                anchors = [m - h * a21 * e for m, e in zip(middles, e1, strict=True)]
                e1 = [d - a for d, a in zip(d1, anchors, strict=True)]
        d2 = [predicted(m.float().double(), middle_sigma).float().double() for m in middles]
        ends = [a + h * (b1 * e + b2 * (d - a)) for a, e, d in zip(anchors, e1, d2, strict=True)]
        moved = [sde(a, y, sigma, following, step_generator) for a, y in zip(anchors, ends, strict=True)]
        x = [each.float().double() for each in moved]
    return [predicted(each, LAST_SIGMA) for each in x]


def test_the_registry_builds_it():
    assert config_of("sampler", "res_2s") is Res2sConfig
    problems = []
    assert parse(Res2sConfig, {}, "sampler", problems) == Res2sConfig(-1, 9999)
    parse(Res2sConfig, {"step_seed": 2**63}, "sampler", problems)
    assert [problem.path for problem in problems] == ["sampler.step_seed"]


@pytest.mark.parametrize(
    ("sigma", "following", "h", "a21", "b1", "b2"),
    [
        (0.909375, 0.725, 0.226586, 0.472717, -0.033763, 0.928563),
        (0.421875, 0.0011, 5.949399, 0.159501, -0.112165, 0.279811),
    ],
)
def test_published_coefficients(sigma, following, h, a21, b1, b2):
    step = math.log(sigma / following)
    assert step == pytest.approx(h, abs=5e-7)
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    assert _towards(zero, one, step / 2).item() / step == pytest.approx(a21, abs=5e-7)
    assert _second_order(zero, one, zero, step).item() / step == pytest.approx(b1, abs=5e-7)
    assert _second_order(zero, zero, one, step).item() / step == pytest.approx(b2, abs=5e-7)


@pytest.mark.parametrize("sigmas", [REFINING, ltx_sigmas(15), ltx_sigmas(4, 8160)], ids=["refining", "15", "4"])
def test_agrees_with_the_formulas(sigmas):
    video, audio = random_state(), random_state(5, seed=1)
    expected = by_the_formulas([video.latents, audio.latents], sigmas.tolist())
    final = Res2sConfig().build().sample(Pair(video, audio), sigmas, denoise, NOISE)
    # States are rounded to fp32 between steps on both sides.
    torch.testing.assert_close(final.video.latents.double(), expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(final.audio.latents.double(), expected[1], rtol=1e-5, atol=1e-5)


def test_its_evaluations_are_the_calls_it_makes():
    calls = []

    def counted(states, sigma, step):
        calls.append(Evaluation(sigma, step))
        return denoise(states, sigma, step)

    sampler = Res2sConfig().build()
    sampler.sample(Pair(random_state(), None), REFINING, counted, NOISE)
    assert calls == list(sampler.evaluations(REFINING.tolist()))
    assert [step for _, step in calls] == [0, 0, 1, 0, 2, 0, 3]
    assert calls[1].sigma == pytest.approx(math.sqrt(0.909375 * 0.725))
    assert calls[-1].sigma == LAST_SIGMA == torch.tensor(0.0011).item()


def test_what_it_cannot_step_through():
    with pytest.raises(ValueError, match=r"steps down to 0.0011 itself"):
        Res2sConfig().build().evaluations([0.5, 0.001, 0.0])


def test_a_constant_prediction_is_reached():
    state = random_state(dtype=torch.bfloat16)
    target = random_state(dtype=torch.bfloat16, seed=3).latents
    final = Res2sConfig().build().sample(Pair(state, None), REFINING, lambda *_: Pair(target, None), NOISE)
    assert torch.equal(final.video.latents, target)


def test_its_noise_has_its_own_seeds_and_leaves_the_runs_alone():
    def final(seed=7, **seeds):
        noise = NoiseSource(seed)
        states = Res2sConfig(**seeds).build().sample(Pair(random_state(), None), REFINING, denoise, noise)
        return states.video.latents, noise.draw((3,))

    latents, following = final()
    assert torch.equal(following, NoiseSource(7).draw((3,)))
    assert torch.equal(final(seed=8)[0], latents)
    assert not torch.equal(final(step_seed=1)[0], latents)
    assert not torch.equal(final(substep_seed=1)[0], latents)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_given_tokens_stay_clean(dtype):
    state = random_state(dtype=dtype)
    mask = state.denoise_mask.clone()
    mask[:, :4] = 0
    seen = []

    def watched(states, sigma, step):
        seen.append(states.video.latents[:, :4])
        return denoise(states, sigma, step)

    final = Res2sConfig().build().sample(Pair(state.with_(denoise_mask=mask), None), REFINING, watched, NOISE)
    assert all(torch.equal(each, state.clean[:, :4]) for each in seen)
    assert torch.equal(final.video.latents[:, :4], state.clean[:, :4])
    assert not torch.equal(final.video.latents[:, 4:], state.clean[:, 4:])
