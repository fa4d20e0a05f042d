"""Sizes of latents, and the order of their tokens against plain loops."""

from fractions import Fraction

import pytest
import torch

from ltxgen.diffusion import AudioGrid, VideoGrid


@pytest.mark.parametrize(
    ("pixels", "latents", "tokens"),
    [((121, 512, 768), (16, 16, 24), 6144), ((121, 1024, 1536), (16, 32, 48), 24576), ((1, 32, 32), (1, 1, 1), 1)],
)
def test_video_sizes(pixels, latents, tokens):
    grid = VideoGrid.from_pixels(*pixels)
    assert (grid.frames, grid.height, grid.width) == latents
    assert grid.num_tokens == tokens
    assert grid.num_frames == pixels[0]


@pytest.mark.parametrize("pixels", [(100, 64, 64), (0, 64, 64), (-7, 64, 64), (9, 65, 64), (9, 64, 0), (9, -32, 64)])
def test_sizes_off_the_grid_are_refused(pixels):
    with pytest.raises(ValueError, match="must be"):
        VideoGrid.from_pixels(*pixels)


@pytest.mark.parametrize(
    ("num_frames", "fps", "latents"),
    [(121, 24, 126), (121, 25, 121), (121, 30, 101), (97, 24, 101), (257, 24, 268), (49, 24, 51), (1, 24, 1)],
)
def test_audio_lengths(num_frames, fps, latents):
    assert AudioGrid.from_video(num_frames, fps).frames == latents
    assert AudioGrid.from_video(num_frames, Fraction(fps)).frames == latents


@pytest.mark.parametrize(("num_frames", "latents"), [(1, 2), (3, 8), (5, 12), (7, 18)])
def test_audio_lengths_round_half_to_even(num_frames, latents):
    # 10 fps: 2.5 latents a frame.
    assert AudioGrid.from_video(num_frames, 10).frames == latents


def test_audio_lengths_take_fps_as_it_is():
    # 29.97 instead of 30000/1001, or 30, would be another length.
    assert AudioGrid.from_video(2881, Fraction(30000, 1001)).frames == 2403
    assert AudioGrid.from_video(2881, 30).frames == 2401


def test_video_token_order():
    grid = VideoGrid(2, 3, 4, channels=5)
    latents = torch.randn(2, 5, 2, 3, 4)
    tokens = grid.patchify(latents)
    assert tokens.shape == (2, grid.num_tokens, grid.token_width)
    for f in range(2):
        for h in range(3):
            for w in range(4):
                assert torch.equal(tokens[:, (f * 3 + h) * 4 + w], latents[:, :, f, h, w])
    assert torch.equal(grid.unpatchify(tokens), latents)


def test_audio_token_order():
    grid = AudioGrid(7, channels=3, mel_bins=4)
    latents = torch.randn(2, 3, 7, 4)
    tokens = grid.patchify(latents)
    assert tokens.shape == (2, grid.num_tokens, grid.token_width)
    for t in range(7):
        for channel in range(3):
            for mel in range(4):
                assert torch.equal(tokens[:, t, channel * 4 + mel], latents[:, channel, t, mel])
    assert torch.equal(grid.unpatchify(tokens), latents)


@pytest.mark.parametrize(
    ("samples", "rate", "latents"),
    [(1, 16000, 1), (640, 16000, 2), (16000, 16000, 26), (44100, 44100, 26), (31238, 44100, 18)],
)
def test_latents_of_a_sound(samples, rate, latents):
    """One spectrogram column every 160 samples at 16 kHz and one at the end, four columns a latent."""
    assert AudioGrid.from_samples(samples, rate).frames == latents
