"""Noising, blending and x0 against float64 formulas."""

import numpy as np
import pytest
import torch

from ltxgen.diffusion import (
    CURRENT,
    LAUNCH,
    LatentState,
    NoiseSource,
    Numerics,
    Pair,
    apply_noise,
    blend_clean,
    to_denoised,
    to_velocity,
)
from ltxgen.diffusion.conditions import Frozen
from ltxgen.diffusion.latents import NoiseLevels

BFLOAT16_HALF_ULP = 2.0**-8


def random_state(dtype=torch.float32, mask=None) -> LatentState:
    generator = torch.Generator().manual_seed(0)
    latents, clean = (torch.randn(1, 12, 8, generator=generator).to(dtype) for _ in range(2))
    if mask is None:
        mask = torch.rand(1, 12, 1, generator=generator)
    return LatentState(latents, clean, mask, torch.zeros(1, 3, 12, 2), num_generated=9)


def as64(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().numpy()


def noised_by_hand(state, noise, scale, noising) -> np.ndarray:
    latents, clean, mask, noise = map(as64, (state.latents, state.clean, state.denoise_mask, noise))
    if noising == "scaled":
        return noise * mask * scale + latents * (1 - mask * scale)
    return clean * (1 - mask) + mask * (latents * (1 - scale) + noise * scale)


@pytest.mark.parametrize("numerics", [CURRENT, LAUNCH], ids=lambda numerics: numerics.name)
@pytest.mark.parametrize("scale", [1.0, 0.909375, 0.3, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_noising(numerics, scale, dtype):
    state = random_state(dtype)
    noise = NoiseSource(1, dtype=dtype).draw((1, 12, 8))
    noised = apply_noise(state, noise, scale, numerics).latents
    assert noised.dtype == dtype
    expected = noised_by_hand(state, noise, scale, numerics.noising)
    rtol = 1e-5 if dtype == torch.float32 else BFLOAT16_HALF_ULP
    np.testing.assert_allclose(as64(noised), expected, rtol=rtol, atol=1e-6)


def test_noisings_differ_only_for_partial_tokens():
    mask = torch.tensor([0.0, 0.5, 1.0] * 4).reshape(1, 12, 1)
    state = random_state(mask=mask)
    state = state.with_(latents=state.clean)
    noise = NoiseSource(1).draw((1, 12, 8))
    current, launch = (apply_noise(state, noise, 0.9, numerics).latents for numerics in (CURRENT, LAUNCH))
    torch.testing.assert_close(current, launch, rtol=0, atol=1e-6)
    moved = state.with_(latents=state.clean + 1)
    current, launch = (apply_noise(moved, noise, 0.9, numerics).latents for numerics in (CURRENT, LAUNCH))
    given, partial, generated = (torch.arange(first, 12, 3) for first in range(3))
    torch.testing.assert_close(current[:, generated], launch[:, generated], rtol=0, atol=1e-6)
    assert torch.equal(current[:, given], state.clean[:, given])
    assert (current - launch)[:, partial].abs().min() > 0.4


def test_full_noise_replaces_a_state_without_conditioning():
    state = LatentState.from_tokens(torch.zeros(1, 12, 8), torch.zeros(1, 3, 12, 2))
    noise = NoiseSource(1).draw((1, 12, 8))
    for numerics in (CURRENT, LAUNCH):
        assert torch.equal(apply_noise(state, noise, 1.0, numerics).latents, noise)


def test_x0_and_velocity_undo_each_other():
    state = random_state()
    x0 = torch.randn(1, 12, 8)
    velocity = to_velocity(state.latents, x0, 0.7)
    np.testing.assert_allclose(as64(velocity), (as64(state.latents) - as64(x0)) / 0.7, rtol=1e-5, atol=1e-6)
    back = to_denoised(state.latents, velocity, torch.full((1, 12), 0.7))
    torch.testing.assert_close(back, x0, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_x0_of_each_token_uses_its_own_timestep(dtype):
    mask = torch.tensor([0.0, 0.25, 1.0] * 4).reshape(1, 12, 1)
    state = random_state(dtype, mask)
    timesteps = state.timesteps(0.8)
    assert timesteps.shape == (1, 12)
    assert timesteps.dtype == torch.float32
    velocity = torch.randn(1, 12, 8).to(dtype)
    x0 = to_denoised(state.latents, velocity, timesteps)
    assert x0.dtype == dtype
    expected = as64(state.latents) - as64(velocity) * 0.8 * as64(mask)
    rtol = 1e-5 if dtype == torch.float32 else BFLOAT16_HALF_ULP
    np.testing.assert_allclose(as64(x0), expected, rtol=rtol, atol=1e-6)
    assert torch.equal(x0[:, ::3], state.latents[:, ::3])


def test_blending_puts_given_tokens_back():
    mask = torch.tensor([0.0, 0.25, 1.0] * 4).reshape(1, 12, 1)
    state = random_state(mask=mask)
    x0 = torch.randn(1, 12, 8)
    blended = blend_clean(x0, state)
    np.testing.assert_allclose(
        as64(blended), as64(x0) * as64(mask) + as64(state.clean) * (1 - as64(mask)), rtol=1e-5, atol=1e-6
    )
    assert torch.equal(blended[:, ::3], state.clean[:, ::3])
    assert torch.equal(blended[:, 2::3], x0[:, 2::3])


def test_appended_tokens_are_dropped_from_every_part():
    state = random_state()
    kept = state.without_appended()
    assert torch.equal(kept.latents, state.latents[:, :9])
    assert torch.equal(kept.clean, state.clean[:, :9])
    assert torch.equal(kept.denoise_mask, state.denoise_mask[:, :9])
    assert kept.positions.shape == (1, 3, 9, 2)


def test_pair_keeps_an_absent_modality_absent():
    both = Pair(1, 2).map(lambda own, other: own + other, Pair(10, 20))
    assert both == Pair(11, 22)
    assert Pair(None, 2).map(lambda own, other: own + other, Pair(None, 20)) == Pair(None, 22)


def test_numerics_by_name():
    assert Numerics.named("current") is CURRENT
    assert Numerics.named("launch") is LAUNCH
    with pytest.raises(ValueError, match="current, launch"):
        Numerics.named("latest")


def test_noise_levels_are_the_distinct_values_of_the_mask():
    mask = torch.tensor([[1.0, 0.0, 1.0, 0.25], [0.0, 1.0, 1.0, 1.0]])[..., None]
    state = LatentState.from_tokens(torch.zeros(2, 4, 3), torch.zeros(2, 1, 4, 2)).with_(denoise_mask=mask)
    levels = NoiseLevels.of(mask)
    assert levels.values.shape == (2, 3)
    assert torch.equal(levels.timesteps(0.6).gather(1, levels.index), state.timesteps(0.6))


@pytest.mark.parametrize("value", [1.0, 0.5])
def test_a_mask_of_one_value_is_one_noise_level(value: float):
    levels = NoiseLevels.of(torch.full((2, 4, 1), value))
    assert levels.index is None
    assert torch.equal(levels.timesteps(0.5), torch.full((2, 1), value / 2))


@pytest.mark.parametrize(("numerics", "sigma"), [(CURRENT, 0.0), (LAUNCH, 0.5)])
@pytest.mark.parametrize("role", ["given", "kept"])
def test_a_frozen_modality(numerics, sigma, role):
    """It ends as it came, whatever a sampler did to it; only the current code starts what is kept from noise."""
    positions = torch.zeros(1, 1, 5, 2)
    tokens, noise = torch.randn(1, 5, 4), torch.randn(1, 5, 4)
    state = Frozen(tokens, role).apply(LatentState.from_tokens(torch.zeros(1, 5, 4), positions), numerics)
    noised = apply_noise(state, noise, 1.0, numerics)
    starts_from_noise = role == "kept" and numerics is CURRENT
    torch.testing.assert_close(noised.latents, noise if starts_from_noise else tokens)
    assert noised.modality_sigma(0.5, numerics) == sigma
    assert not noised.denoise_mask.any()
    assert torch.equal(noised.with_(latents=noise).result, tokens)
