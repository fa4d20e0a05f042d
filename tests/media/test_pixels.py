"""Pixel conversions against exact integer arithmetic and against the definition of BT.709."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
import torch

from ltxgen.media import rgb_to_yuv420, to_uint8
from ltxgen.media.pixels import BT601, BT709, YuvMatrix, yuv420_to_rgb

ROWS = [("0.2126", "0.7152", "0.0722"), ("-0.1146", "-0.3854", "0.5"), ("0.5", "-0.4542", "-0.0458")]


def exact_plane(values: np.ndarray, row: tuple[str, str, str], gain: int, offset: int, count: int) -> list[int]:
    """floor(gain * row . values / (255 count) + offset) in rationals; `values` (n, 3) are sums of `count` pixels."""
    weights = [Fraction(weight) for weight in row]
    return [
        floor(gain * sum(w * int(v) for w, v in zip(weights, pixel, strict=True)) / (255 * count) + offset)
        for pixel in values
    ]


def test_planes_equal_exact_arithmetic():
    frame = torch.randint(0, 256, (16, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    frame[:2, :8] = torch.tensor([0, 1, 85, 127, 128, 170, 254, 255], dtype=torch.uint8)[None, :, None]  # greys
    frame[2:4] = 255
    rgb = frame.numpy().astype(np.int64)
    quads = rgb.reshape(8, 2, 12, 2, 3).sum(axis=(1, 3)).reshape(-1, 3)
    expected = [
        *exact_plane(rgb.reshape(-1, 3), ROWS[0], 219, 16, 1),
        *exact_plane(quads, ROWS[1], 224, 128, 4),
        *exact_plane(quads, ROWS[2], 224, 128, 4),
    ]
    planes = rgb_to_yuv420(frame)
    assert planes.shape == (24, 24)
    assert planes.flatten().tolist() == expected


def test_grey_has_no_colour():
    greys = torch.arange(256, dtype=torch.uint8).repeat_interleave(4).view(256, 2, 2)
    for grey in greys:
        planes = rgb_to_yuv420(grey[..., None].expand(2, 2, 3))
        assert planes[2].tolist() == [128, 128]
        assert planes[0, 0] == 16 + int(grey[0, 0]) * 219 // 255


@pytest.mark.parametrize("limited", [True, False])
@pytest.mark.parametrize("matrix", [BT709, BT601])
def test_planes_to_rgb_inverts_the_definition(matrix, limited):
    colours = torch.tensor(
        [[200, 30, 60], [10, 240, 100], [40, 50, 220], [255, 255, 255], [0, 0, 0]], dtype=torch.float64
    )
    for r, g, b in (colours / 255).tolist():
        y = matrix.red * r + (1 - matrix.red - matrix.blue) * g + matrix.blue * b
        u, v = (b - y) / (2 - 2 * matrix.blue), (r - y) / (2 - 2 * matrix.red)
        luma = 219 * y + 16 if limited else 255 * y
        chroma = [224 * c + 128 if limited else 255 * c + 128 for c in (u, v)]
        planes = torch.tensor([[luma, luma], [luma, luma], chroma]).round().clamp(0, 255).to(torch.uint8)
        rgb = yuv420_to_rgb(planes, YuvMatrix(matrix.red, matrix.blue, limited))
        assert (rgb[0, 0].double() - torch.tensor([r, g, b]).double() * 255).abs().max() <= 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoder_values_to_pixels(dtype):
    values = torch.tensor([-1.5, -1.0, -0.5, 0.0, 0.5, 0.9921875, 1.0, 7.0], dtype=dtype)
    video = values.view(1, 1, 1, 2, 4).expand(1, 3, 2, 2, 4)
    frames = to_uint8(video)
    assert (frames.dtype, frames.shape) == (torch.uint8, (2, 2, 4, 3))
    assert frames[1, :, :, 2].flatten().tolist() == [0, 0, 63, 127, 191, 254, 255, 255]
    assert torch.equal(frames, to_uint8(video[0]))


def test_channels_and_frames_keep_their_places():
    video = torch.arange(3 * 2 * 4 * 6).view(3, 2, 4, 6) / 72 - 1
    frames = to_uint8(video)
    assert frames[1, 2, 5, 1] == int((video[1, 1, 2, 5] + 1) / 2 * 255)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_values_that_are_not_finite_are_refused(value):
    video = torch.zeros(3, 9, 4, 4)
    video[1, 6, 2, 2] = value
    with pytest.raises(ValueError, match=r"1 of 9 frames .*first: 6"):
        to_uint8(video)
