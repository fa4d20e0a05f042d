from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from ltxgen.media import ContactSheet, contact_sheet, save_png

MARGIN, LABEL, CHANNEL = 8, 20, 56


def numbered(num_frames: int, height: int = 32, width: int = 64) -> torch.Tensor:
    """Frame i is the flat grey i."""
    return torch.arange(num_frames, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, height, width, 3).contiguous()


def test_chosen_frames_come_in_order_from_any_chunks(tmp_path):
    frames = numbered(121)
    sheets = []
    for sizes in ([121], [57, 40, 24], [1] * 121):
        sheet = ContactSheet(121, Fraction(24), image_size=64)
        for chunk in frames.split(sizes):
            sheet.add_frames(chunk)
        sheets.append(np.asarray(Image.open(sheet.save(tmp_path / "sheet.png"))))
    assert sheet.indices == (0, 11, 22, 33, 44, 55, 65, 76, 87, 98, 109, 120)
    assert np.array_equal(sheets[0], sheets[1])
    assert np.array_equal(sheets[0], sheets[2])
    for place, index in enumerate(sheet.indices):
        x = MARGIN + place % 4 * (64 + MARGIN)
        y = MARGIN + place // 4 * (32 + LABEL + MARGIN)
        assert (sheets[0][y : y + 32, x : x + 64] == index).all()
        assert sheets[0][y + 32 : y + 32 + LABEL, x : x + 64].max() > 150, "a label"


@pytest.mark.parametrize(("num_frames", "columns", "rows"), [(1, 1, 1), (9, 3, 3), (17, 4, 3)])
def test_dimensions(tmp_path, num_frames, columns, rows):
    path = contact_sheet(numbered(num_frames, 64, 32), tmp_path / "sheet.png", Fraction(24))
    with Image.open(path) as image:
        assert image.size == (
            columns * (160 + MARGIN) + MARGIN,
            rows * (320 + LABEL + MARGIN) + MARGIN,
        )
    assert list(tmp_path.iterdir()) == [path]


def test_sound_is_drawn_below(tmp_path):
    waveform = torch.zeros(1, 2, 4800)
    waveform[0, 0, 2400:] = 1.0  # left: silence, then full; right: silence
    path = contact_sheet(
        [numbered(9)[:4], numbered(9)[4:]],
        tmp_path / "sheet.png",
        Fraction(24),
        num_frames=9,
        waveform=waveform,
        sample_rate=48_000,
    )
    sheet = np.asarray(Image.open(path)).astype(int)
    top = 3 * (160 + LABEL + MARGIN) + MARGIN
    assert sheet.shape[0] == top + 2 * CHANNEL + LABEL + MARGIN
    blue = (sheet == (94, 174, 255)).all(axis=-1)
    left, right = blue[top : top + CHANNEL], blue[top + CHANNEL : top + 2 * CHANNEL]
    height = left.any(axis=1).nonzero()[0]
    assert height.min() == 2, "full scale reaches the top of its strip"
    middle = sheet.shape[1] // 2
    assert left[2, middle + 5 : -MARGIN].all()
    assert not left[2, : middle - 5].any()
    assert not right.any()


def test_sound_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="NaN or infinite"):
        ContactSheet(1, Fraction(24)).set_audio(torch.full((2, 10), torch.nan), 48_000)


def test_save_png(tmp_path):
    image = torch.randint(0, 256, (5, 7, 3), dtype=torch.uint8)
    path = save_png(image, tmp_path / "frame.png")
    assert np.array_equal(np.asarray(Image.open(path)), image.numpy())
