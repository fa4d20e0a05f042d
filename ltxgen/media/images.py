"""Pictures of a run: a single frame as PNG, and a contact sheet of frames and sound."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ltxgen.media.files import whole_file
from ltxgen.media.mp4 import stereo

_MARGIN = 8
_LABEL_HEIGHT = 20
_CHANNEL_HEIGHT = 56  # of one channel's waveform
_BACKGROUND = (24, 24, 27)
_TEXT = (212, 212, 216)
_AXIS = (82, 82, 91)
_WAVES = ((94, 174, 255), (255, 158, 100))  # left, right


class ContactSheet:
    """Collect what a contact sheet needs from frames that stream by, and keep nothing else.

    `num_frames` is the length of the whole clip; `max_images` of its frames, evenly spaced, first and last included,
    are shown, each scaled so that its long side is `image_size` pixels.
    """

    def __init__(self, num_frames: int, fps: Fraction, *, max_images: int = 12, image_size: int = 320) -> None:
        assert min(num_frames, max_images) > 0
        shown = min(num_frames, max_images)
        self.indices = tuple(round(step) for step in np.linspace(0, num_frames - 1, shown).tolist())
        self._fps = Fraction(fps)
        self._image_size = image_size
        self._images: list[Image.Image] = []
        self._seen = 0
        self._samples: np.ndarray | None = None
        self._sample_rate = 0

    def add_frames(self, frames: Tensor | np.ndarray) -> None:
        """Take the next frames, `(F, H, W, 3)` uint8."""
        for index in self.indices[len(self._images) :]:
            if index >= self._seen + len(frames):
                break
            image = Image.fromarray(_as_array(frames[index - self._seen]))
            scale = self._image_size / max(image.size)
            size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            self._images.append(image.resize(size, Image.Resampling.LANCZOS))
        self._seen += len(frames)

    def set_audio(self, waveform: Tensor | np.ndarray, sample_rate: int) -> None:
        """Take the sound, `(2, n)` or `(1, 2, n)` in [-1, 1]; ValueError when a sample is NaN or infinite."""
        self._samples, self._sample_rate = stereo(waveform), sample_rate

    def save(self, path: Path | str) -> Path:
        """Draw the sheet and write it as PNG, whole or not at all."""
        assert self._images, "a contact sheet needs frames"
        return _save(self._draw(), Path(path))

    def _draw(self) -> Image.Image:
        width, height = self._images[0].size
        columns = math.ceil(math.sqrt(len(self._images)))
        rows = math.ceil(len(self._images) / columns)
        sheet_width = columns * (width + _MARGIN) + _MARGIN
        grid_height = rows * (height + _LABEL_HEIGHT + _MARGIN) + _MARGIN
        strip_height = 2 * _CHANNEL_HEIGHT + _LABEL_HEIGHT + _MARGIN if self._samples is not None else 0
        sheet = Image.new("RGB", (sheet_width, grid_height + strip_height), _BACKGROUND)
        draw = ImageDraw.Draw(sheet)
        for place, (index, image) in enumerate(zip(self.indices, self._images, strict=True)):
            left = _MARGIN + place % columns * (width + _MARGIN)
            top = _MARGIN + place // columns * (height + _LABEL_HEIGHT + _MARGIN)
            sheet.paste(image, (left, top))
            draw.text((left, top + height + 3), f"{float(index / self._fps):.2f} s", fill=_TEXT, font=_font())
        if self._samples is not None:
            self._draw_sound(draw, self._samples, grid_height, sheet_width - 2 * _MARGIN)
        return sheet

    def _draw_sound(self, draw: ImageDraw.ImageDraw, samples: np.ndarray, top: int, width: int) -> None:
        edges = np.linspace(0, samples.shape[1], width + 1).astype(int)
        for channel, color, name in zip(samples, _WAVES, "LR", strict=True):
            middle, reach = top + _CHANNEL_HEIGHT // 2, _CHANNEL_HEIGHT // 2 - 2
            draw.line([(_MARGIN, middle), (_MARGIN + width - 1, middle)], fill=_AXIS)
            for column, (start, end) in enumerate(pairwise(edges)):
                part = channel[start : max(end, start + 1)].clip(-1, 1)
                low, high = (middle - round(float(value) * reach) for value in (part.min(), part.max()))
                draw.line([(_MARGIN + column, high), (_MARGIN + column, low)], fill=color)
            draw.text((_MARGIN + 2, top), name, fill=_TEXT, font=_font())
            top += _CHANNEL_HEIGHT
        peak = float(np.abs(samples).max())
        label = f"0 s to {samples.shape[1] / self._sample_rate:.2f} s, {self._sample_rate} Hz, peak {peak:.2f}"
        draw.text((_MARGIN, top + 3), label, fill=_TEXT, font=_font())


def contact_sheet(
    frames: Tensor | np.ndarray | Iterable[Tensor | np.ndarray],
    path: Path | str,
    fps: Fraction,
    *,
    num_frames: int | None = None,
    waveform: Tensor | np.ndarray | None = None,
    sample_rate: int | None = None,
) -> Path:
    """Write a contact sheet of `frames`: one array `(F, H, W, 3)` uint8, or chunks of one of `num_frames` in all."""
    if isinstance(frames, (Tensor, np.ndarray)):
        frames, num_frames = [frames], len(frames)
    assert num_frames is not None, "chunks need the number of frames in all"
    sheet = ContactSheet(num_frames, fps)
    for chunk in frames:
        sheet.add_frames(chunk)
    if waveform is not None:
        assert sample_rate is not None, "a waveform needs its sample rate"
        sheet.set_audio(waveform, sample_rate)
    return sheet.save(path)


def save_png(image: Tensor | np.ndarray, path: Path | str) -> Path:
    """Write one picture `(H, W, 3)` uint8 as PNG, whole or not at all."""
    return _save(Image.fromarray(_as_array(image)), Path(path))


def _save(image: Image.Image, path: Path) -> Path:
    with whole_file(path) as partial:
        image.save(partial, format="PNG", compress_level=4)  # as small as at Pillow's 6, in a third of the time
    return path


def _as_array(image: Tensor | np.ndarray) -> np.ndarray:
    array = torch.as_tensor(image).cpu().numpy()
    assert (array.dtype, array.ndim) == (np.uint8, 3), "(H, W, 3) uint8"
    return np.ascontiguousarray(array)


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default()  # ships with Pillow: the same sheet on every machine
