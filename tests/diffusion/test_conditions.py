"""Given and appended tokens, their masks and attention, against the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ltxgen.diffusion import CURRENT, LAUNCH, LatentState, VideoGrid, apply_noise, keyframe_positions, video_positions
from ltxgen.diffusion.conditions import (
    Appended,
    AppendedTokens,
    Conditions,
    GivenTokens,
    joined,
    total_appended,
    weakened,
)
from ltxgen.diffusion.masks import mask_of_tokens
from ltxgen.diffusion.pair import Pair
from ltxgen.diffusion.positions import reference_positions

BOTH = pytest.mark.parametrize("numerics", [CURRENT, LAUNCH], ids=lambda numerics: numerics.name)
GRID = VideoGrid(3, 1, 2, channels=4)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def empty_state() -> LatentState:
    return LatentState.from_tokens(randn(1, 6, 4), video_positions(GRID, 24))


def appended(num_tokens: int, attention=None, mask=0.0, seed: int = 1) -> AppendedTokens:
    return AppendedTokens(randn(1, num_tokens, 4, seed=seed), randn(1, 3, num_tokens, 2), mask, attention)


@BOTH
def test_given_tokens_are_there_after_noise(numerics):
    before = empty_state()
    tokens = randn(1, 2, 4, seed=1)
    state = GivenTokens(tokens, 2, torch.tensor([0.0, 0.25])).apply(before, numerics)
    assert state.denoise_mask.flatten().tolist() == [1, 1, 0, 0.25, 1, 1]
    assert torch.equal(before.denoise_mask, torch.ones(1, 6, 1)), "the state before is left as it was"
    noise = randn(1, 6, 4, seed=2)
    noised = apply_noise(state, noise, 1.0, numerics).latents
    wanted = noise.clone()
    wanted[:, 2], wanted[:, 3] = tokens[:, 0], 0.25 * noise[:, 3] + 0.75 * tokens[:, 1]
    torch.testing.assert_close(noised, wanted)
    assert torch.equal(state.clean[:, 2:4], tokens)


@BOTH
def test_appended_tokens_stand_behind_the_grid_and_go(numerics):
    condition = appended(3, mask=0.5)
    state = condition.apply(empty_state(), numerics)
    assert state.latents.shape == (1, 9, 4)
    assert state.denoise_mask.flatten().tolist() == [1] * 6 + [0.5] * 3
    assert torch.equal(state.positions[:, :, 6:], condition.positions)
    assert state.attention is None
    noise = randn(1, 9, 4, seed=2)
    noised = apply_noise(state, noise, 1.0, numerics).latents
    torch.testing.assert_close(noised[:, 6:], 0.5 * noise[:, 6:] + 0.5 * condition.tokens)
    assert state.without_appended().latents.shape == (1, 6, 4)
    assert state.without_appended().num_generated == 6


def test_a_second_stage_starts_partly_given_tokens_as_each_official_code_does():
    """At a noise level below 1: launch mixes noise with the condition, current with what the stage started from."""
    condition, noise = appended(1, mask=0.5), randn(1, 7, 4, seed=2)
    ends = {
        each.name: apply_noise(condition.apply(empty_state(), each), noise, 0.8, each).latents[:, 6]
        for each in (CURRENT, LAUNCH)
    }
    torch.testing.assert_close(ends["launch"], 0.4 * noise[:, 6] + 0.6 * condition.tokens[:, 0])
    torch.testing.assert_close(ends["current"], 0.4 * noise[:, 6] + 0.5 * condition.tokens[:, 0])


def test_attention_between_groups():
    """Rows: the grid (6), a keyframe (1), two references (2 each), another keyframe (1)."""
    state = empty_state()
    groups = (appended(1), appended(2, torch.tensor([0.3, 0.0])), appended(2, 1.0), appended(1))
    for condition in groups:
        state = condition.apply(state, CURRENT)
    assert state.attention is not None
    wanted = np.zeros((12, 12))
    wanted[:7, :7] = 1  # the first keyframe came before there were strengths
    for begin, end, with_grid in ((7, 9, [0.3, 0.0]), (9, 11, [1.0, 1.0]), (11, 12, [1.0])):
        wanted[begin:end, begin:end] = 1
        wanted[:6, begin:end] = with_grid
        wanted[begin:end, :6] = np.array(with_grid)[:, None]
    np.testing.assert_allclose(state.attention[0].numpy(), wanted, atol=1e-7)


def test_references_alone_are_weakened_and_full_attention_needs_no_mask():
    conditions: Conditions = Pair((GivenTokens(randn(1, 1, 4), 0, 0.0), appended(1), appended(2, 1.0)), ())
    given, keyframe, reference = weakened(conditions, 0.5).video or ()
    assert given is (conditions.video or ())[0]
    assert keyframe.attention is None
    assert reference.attention == 0.5
    for strength, is_masked in ((1.0, False), (0.5, True)):
        state = empty_state()
        for condition in weakened(conditions, strength).video or ():
            state = condition.apply(state, CURRENT)
        assert (state.attention is not None) == is_masked
        assert state.latents.shape[1] == 9


def test_what_is_known_before():
    one, other = Pair(Appended(4), Appended()), Pair(Appended(8, 0.5), Appended())
    assert total_appended([one, other, other]) == Pair(Appended(20, 0.5), Appended())
    assert total_appended([]) == Pair(Appended(), Appended())
    assert joined([Pair(("a",), ()), Pair(("b",), ("c",))]) == Pair(("a", "b"), ("c",))


@pytest.mark.parametrize("numerics", [CURRENT, LAUNCH], ids=lambda numerics: numerics.name)
def test_positions_of_a_keyframe(numerics):
    grid = VideoGrid(1, 2, 3)
    positions = keyframe_positions(grid, 24, 40, numerics.keyframe_span_frames)
    last = {"current": 41, "launch": 48}[numerics.name]
    assert positions.shape == (1, 3, 6, 2)
    torch.testing.assert_close(positions[0, 0], torch.tensor([[40 / 24, last / 24]] * 6))
    assert torch.equal(positions[:, 1:], video_positions(grid, 24)[:, 1:])
    assert torch.equal(keyframe_positions(grid, 24, 0, numerics.keyframe_span_frames), video_positions(grid, 24))


def test_positions_of_a_smaller_reference_cover_the_video():
    small, large = reference_positions(VideoGrid(3, 2, 3), 30, 2), video_positions(VideoGrid(3, 4, 6), 30)
    assert torch.equal(small[:, 0].unique(), large[:, 0].unique())
    for axis in (1, 2):
        assert small[:, axis].max() == large[:, axis].max()
        assert (small[:, axis].diff() == 64).all()


@pytest.mark.parametrize("num_frames", [1, 17])
def test_a_mask_is_the_mean_over_each_token(num_frames: int):
    grid = VideoGrid((num_frames - 1) // 8 + 1, 2, 3)
    mask = torch.rand(num_frames, 20, 36, generator=torch.Generator().manual_seed(0))
    wanted = [
        mask[max(0, 8 * f - 7) : 8 * f + 1, 10 * h : 10 * h + 10, 12 * w : 12 * w + 12].mean()
        for f in range(grid.frames)
        for h in range(2)
        for w in range(3)
    ]
    torch.testing.assert_close(mask_of_tokens(mask, grid), torch.stack(wanted))
    still = mask[:1]
    torch.testing.assert_close(mask_of_tokens(still, grid), mask_of_tokens(still.expand(num_frames, -1, -1), grid))
