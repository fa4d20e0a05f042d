"""Euler steps against float64 reasoning, rounded where the official code rounds."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from ltxgen.diffusion import LatentState, NoiseSource, Pair, ltx_sigmas
from ltxgen.registry import config_of
from ltxgen.sampler.euler import Euler, EulerConfig, euler_step

NOISE = NoiseSource(0)


def random_state(num_tokens=16, dtype=torch.float32, seed=0) -> LatentState:
    latents = torch.randn(1, num_tokens, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return LatentState.from_tokens(latents, torch.zeros(1, 3, num_tokens, 2))


def rounded(values: np.ndarray) -> np.ndarray:
    return torch.from_numpy(values).to(torch.bfloat16).double().numpy()


def predicting(function):
    """A denoiser whose x0 is `function` of the latents."""
    return lambda states, sigma, step: states.map(lambda state: function(state.latents))


def test_the_registry_builds_it():
    assert config_of("sampler", "euler") is EulerConfig
    assert isinstance(EulerConfig().build(), Euler)


def test_one_step_rounds_velocity_and_latents_to_bfloat16():
    generator = torch.Generator().manual_seed(0)
    latents, x0 = (torch.randn(1, 500, 64, generator=generator).to(torch.bfloat16) for _ in range(2))
    sigma, following = torch.tensor([0.909375, 0.725]).tolist()
    step = euler_step(latents, x0, sigma, following).double().numpy()
    x, target = latents.double().numpy(), x0.double().numpy()
    velocity = rounded((x - target) / sigma)
    expected = rounded(x + velocity * (following - sigma))
    # float64 and fp32 arithmetic round to different bf16 neighbours only next to a tie.
    assert (step != expected).mean() < 1e-3
    unrounded = rounded(x + (x - target) / sigma * (following - sigma))
    assert 0.1 < (step != unrounded).mean() < 0.3


def test_the_last_step_is_x0_up_to_the_velocity_rounding():
    generator = torch.Generator().manual_seed(0)
    latents, x0 = (torch.randn(1, 500, 64, generator=generator).to(torch.bfloat16) for _ in range(2))
    last = euler_step(latents, x0, torch.tensor(0.421875).item(), 0.0)
    assert not torch.equal(last, x0)
    torch.testing.assert_close(last, x0, rtol=0, atol=2**-6)


def test_whole_run_agrees_with_diffusers_in_fp32():
    steps = 8
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, time_shift_type="exponential", shift_terminal=0.1
    )
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=2.05)
    state = random_state()
    expected = state.latents
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas[:-1], strict=True):
        x0 = torch.tanh(expected)
        expected = scheduler.step((expected - x0) / sigma, timestep, expected).prev_sample
    final = Euler().sample(Pair(state, None), ltx_sigmas(steps), predicting(torch.tanh), NOISE)
    torch.testing.assert_close(final.video.latents, expected, rtol=1e-5, atol=1e-5)


def test_both_modalities_step_together():
    video, audio = random_state(16, torch.bfloat16), random_state(5, torch.bfloat16, seed=1)
    calls = []

    def denoise(states, sigma, step):
        calls.append((step, sigma))
        return states.map(lambda state: state.latents * 0.5)

    sigmas = torch.tensor([0.909375, 0.725, 0.421875, 0.0])
    together = Euler().sample(Pair(video, audio), sigmas, denoise, NOISE)
    assert calls == list(enumerate(sigmas[:-1].tolist()))
    assert together.video.latents.dtype == torch.bfloat16
    for alone in (Pair(video, None), Pair(None, audio)):
        final = Euler().sample(alone, sigmas, denoise, NOISE)
        for modality in ("video", "audio"):
            if getattr(alone, modality) is None:
                assert getattr(final, modality) is None
            else:
                assert torch.equal(getattr(final, modality).latents, getattr(together, modality).latents)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_given_tokens_stay_clean_whatever_is_predicted(dtype):
    state = random_state(dtype=dtype)
    mask = state.denoise_mask.clone()
    mask[:, :4] = 0
    state = state.with_(denoise_mask=mask)
    nine = predicting(lambda latents: torch.full_like(latents, 9.0))
    final = Euler().sample(Pair(state, None), ltx_sigmas(4), nine, NOISE)
    assert torch.equal(final.video.latents[:, :4], state.clean[:, :4])
    torch.testing.assert_close(final.video.latents[:, 4:], torch.full((1, 12, 8), 9.0, dtype=dtype), rtol=0, atol=0.1)


def test_a_partly_given_token_lands_between():
    state = random_state()
    state = state.with_(denoise_mask=torch.full_like(state.denoise_mask, 0.25))
    final = Euler().sample(Pair(state, None), ltx_sigmas(4), predicting(torch.zeros_like), NOISE)
    torch.testing.assert_close(final.video.latents, 0.75 * state.clean, rtol=1e-5, atol=1e-6)


def test_one_evaluation_a_step():
    assert Euler().evaluations([0.9, 0.7, 0.4, 0.0]) == [(0.9, 0), (0.7, 1), (0.4, 2)]
