"""Ancestral Euler and gradient estimation against their formulas, and against Euler where they are it."""

import itertools

import pytest
import torch

from ltxgen.config.schema import parse
from ltxgen.diffusion import LatentState, NoiseSource, Pair, ltx_sigmas
from ltxgen.registry import config_of
from ltxgen.sampler.euler import Euler
from ltxgen.sampler.euler_ancestral import EulerAncestralConfig, ancestral_step
from ltxgen.sampler.gradient_estimation import GradientEstimationConfig

SIGMAS = ltx_sigmas(6)
BOTH = [EulerAncestralConfig(), GradientEstimationConfig()]


def random_state(num_tokens=16, dtype=torch.float32, seed=0) -> LatentState:
    latents = torch.randn(1, num_tokens, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return LatentState.from_tokens(latents, torch.zeros(1, 3, num_tokens, 2))


def denoise(states, sigma, step):
    return states.map(lambda state: torch.tanh(state.latents * (1 + sigma)))


def sampled(sampler, state, sigmas=SIGMAS, seed=0):
    return sampler.sample(Pair(state, None), sigmas, denoise, NoiseSource(seed)).video.latents


def test_their_yaml():
    for kind, config in zip(("euler_ancestral", "gradient_estimation"), BOTH, strict=True):
        problems = []
        assert parse(config_of("sampler", kind), {}, "sampler", problems) == config
        parse(config_of("sampler", kind), {"eta": 1.5, "gamma": -1}, "sampler", problems)
        assert len(problems) == 2  # one key is the other sampler's


@pytest.mark.parametrize("config", BOTH, ids=["ancestral", "gradient"])
def test_one_evaluation_a_step(config):
    assert config.build().evaluations([0.9, 0.4, 0.0]) == [(0.9, 0), (0.4, 1)]


@pytest.mark.parametrize("config", [EulerAncestralConfig(eta=0.0), GradientEstimationConfig(gamma=1.0)])
def test_at_their_neutral_setting_they_are_euler(config):
    torch.testing.assert_close(
        sampled(config.build(), random_state()), sampled(Euler(), random_state()), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("config", BOTH, ids=["ancestral", "gradient"])
def test_given_tokens_stay_clean(config):
    state = random_state(dtype=torch.bfloat16)
    mask = state.denoise_mask.clone()
    mask[:, :4] = 0
    final = sampled(config.build(), state.with_(denoise_mask=mask))
    assert torch.equal(final[:, :4], state.clean[:, :4])


def test_ancestral_euler_by_its_formula():
    state = random_state()
    x = state.latents.double()
    source = NoiseSource(3)
    for sigma, following in itertools.pairwise(SIGMAS.tolist()):
        x0 = torch.tanh(x * (1 + sigma))
        if following == 0:
            x = x0
            break
        down = following * (1 + (following / sigma - 1) * 1.0)
        ratio = (1 - following) / (1 - down)
        x = ratio * (down / sigma * x + (1 - down / sigma) * x0)
        x = x + source.draw(x.shape).double() * (following**2 - (down * ratio) ** 2) ** 0.5
    torch.testing.assert_close(sampled(EulerAncestralConfig().build(), state, seed=3).double(), x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask", [1.0, 0.25])
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_a_token_arrives_at_its_own_noise_level(mask, eta):
    """From (1 - t)·clean + t·noise with the right prediction, the shares of clean and noise are those at t'."""
    sigma, following = 0.9, 0.6
    clean, noise, fresh = torch.eye(3).unsqueeze(0).unbind(1)
    t, following_t = mask * sigma, mask * following
    state = LatentState.from_tokens(((1 - t) * clean + t * noise).unsqueeze(1), torch.zeros(1, 3, 1, 2))
    state = state.with_(denoise_mask=torch.full_like(state.denoise_mask, mask))
    step = ancestral_step(state, clean.unsqueeze(1), fresh.unsqueeze(1), sigma, following, eta).squeeze()
    assert step[0].item() == pytest.approx(1 - following_t, abs=1e-6)
    assert step[1:].norm().item() == pytest.approx(following_t, abs=1e-6)
    assert step[2] > 0


def test_another_seed_adds_other_noise():
    state = random_state()
    one, other = (sampled(EulerAncestralConfig().build(), state, seed=seed) for seed in (1, 2))
    assert not torch.equal(one, other)


def test_gradient_estimation_by_its_formula():
    x, last = random_state().latents.double(), None
    for sigma, following in itertools.pairwise(SIGMAS.tolist()):
        x0 = torch.tanh(x * (1 + sigma))
        velocity = (x - x0) / sigma
        ahead = velocity if last is None else last + 2 * (velocity - last)
        x, last = (x0 if following == 0 else x + ahead * (following - sigma)), velocity
    final = sampled(GradientEstimationConfig().build(), random_state())
    torch.testing.assert_close(final.double(), x, rtol=1e-4, atol=1e-5)
