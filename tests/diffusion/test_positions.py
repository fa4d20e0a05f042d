"""Token bounds against plain loops over latents."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from ltxgen.diffusion import CURRENT, LAUNCH, AudioGrid, VideoGrid, audio_positions, video_positions


def video_bounds_by_hand(frames, height, width, fps):
    """[start, end) per token, in exact rationals rounded once to fp32."""
    tokens = []
    for f in range(frames):
        for h in range(height):
            for w in range(width):
                time = [Fraction(max(0, 8 * edge + 1 - 8)) / Fraction(fps) for edge in (f, f + 1)]
                tokens.append([time, [32 * h, 32 * h + 32], [32 * w, 32 * w + 32]])
    return np.array(tokens, dtype=float).transpose(1, 0, 2)[None]


@pytest.mark.parametrize("fps", [24, 25.0, Fraction(30000, 1001), 23.976])
@pytest.mark.parametrize(("num_frames", "height", "width"), [(1, 32, 64), (17, 96, 64), (121, 64, 32)])
def test_video_bounds(num_frames, height, width, fps):
    grid = VideoGrid.from_pixels(num_frames, height, width)
    positions = video_positions(grid, fps)
    expected = video_bounds_by_hand(grid.frames, grid.height, grid.width, fps)
    assert positions.shape == (1, 3, grid.num_tokens, 2)
    assert positions.dtype == torch.float32
    # fps itself is rounded to fp32 before the division: two roundings in all.
    np.testing.assert_allclose(positions.numpy(), expected, rtol=1.2e-7, atol=0)


def test_the_first_video_latent_is_one_frame():
    frames = video_positions(VideoGrid(4, 1, 1), fps=1)[0, 0]
    assert frames.tolist() == [[0, 1], [1, 9], [9, 17], [17, 25]]


def test_video_bounds_in_bfloat16_are_the_rounded_seconds():
    grid = VideoGrid.from_pixels(121, 1024, 1536)
    exact = video_positions(grid, 24, CURRENT.video_position_dtype or torch.bfloat16)
    rounded = video_positions(grid, 24, LAUNCH.video_position_dtype or torch.bfloat16)
    assert exact.dtype == torch.float32
    assert torch.equal(rounded, exact.to(torch.bfloat16))
    # Pixels are exact in bf16; time is where rounding hurts, by up to half a frame.
    assert torch.equal(rounded[:, 1:].float(), exact[:, 1:])
    midpoint_error = (rounded[:, 0].mean(-1).float() - exact[:, 0].mean(-1)).abs().max().item()
    assert 0.015 < midpoint_error < 0.5 / 24 + 1e-3


def test_other_compression():
    positions = video_positions(VideoGrid(2, 1, 2, time_factor=4, spatial_factor=16), fps=2)
    assert positions[0, 0].tolist() == [[0, 0.5], [0, 0.5], [0.5, 2.5], [0.5, 2.5]]
    assert positions[0, 2].tolist() == [[0, 16], [16, 32], [0, 16], [16, 32]]


def test_audio_bounds():
    positions = audio_positions(AudioGrid(126))
    expected = [[max(0, 4 * edge + 1 - 4) / 100 for edge in (i, i + 1)] for i in range(126)]
    assert positions.shape == (1, 1, 126, 2)
    assert positions.dtype == torch.float32
    np.testing.assert_allclose(positions[0, 0].numpy(), expected, rtol=1.2e-7, atol=0)
    np.testing.assert_allclose(positions[0, 0, [0, 1, 2, -1]], [[0, 0.01], [0.01, 0.05], [0.05, 0.09], [4.97, 5.01]])
