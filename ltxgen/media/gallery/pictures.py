"""Small pictures of a video, as `data:` addresses: its first frame, its sound as waveform and spectrogram.

They are a few kilobytes each, so that a page of fifty videos opens at once and reads only those that are looked at.
"""

from __future__ import annotations

import base64
import functools
import io
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from ltxgen.media.container import open_media
from ltxgen.media.read import rgb_of

_POSTER_SIDE = 480
_SOUND_SIZE = (640, 72)  # columns, rows
_WINDOW_SECONDS = 0.043  # of the spectrogram: 2048 samples at 48 kHz, telling apart tones of 25 Hz
_LOWEST_HZ = 50
_RANGE_DB = 80
_WAVES = ((74, 144, 217), (224, 133, 76))  # left above, right below; both read well on light and on dark
# Dark to light with rising lightness, so that it also reads in grey.
_HEAT = ((13, 11, 30), (62, 18, 91), (134, 34, 106), (205, 64, 83), (246, 129, 69), (252, 205, 120), (252, 253, 220))


@dataclass(frozen=True)
class Look:
    """What a page shows of a video before it is loaded. `sound` holds `waveform` and `spectrogram` (addresses),
    `seconds`, `sample_rate` and `peak`; None for a video without sound."""

    width: int
    height: int
    fps: float
    num_frames: int
    poster: str
    sound: dict[str, Any] | None


def look_at(path: Path) -> Look:
    """Decode the first frame and the sound of a video. Raises OSError, av.FFmpegError or ValueError for a bad file."""
    about = path.stat()
    return _look_at(path.resolve(), about.st_mtime_ns, about.st_size)


@functools.lru_cache(maxsize=1024)
def _look_at(path: Path, changed: int, size: int) -> Look:
    with open_media(path) as container:
        if not container.streams.video:
            raise ValueError("it has no video stream")
        stream = container.streams.video[0]
        frame = next(container.decode(stream), None)
        if frame is None or stream.average_rate is None:
            raise ValueError("it has no frames")
        fps, num_frames = Fraction(stream.average_rate), stream.frames
        if not num_frames and stream.duration is not None and stream.time_base is not None:
            num_frames = round(stream.duration * stream.time_base * fps)
        image = Image.fromarray(rgb_of(frame).numpy())
        container.seek(0)
        sound = _decoded_sound(container)
    width, height = image.size
    image.thumbnail((_POSTER_SIDE, _POSTER_SIDE), Image.Resampling.LANCZOS)
    return Look(
        width=width,
        height=height,
        fps=float(fps),
        num_frames=max(1, num_frames),
        poster=_address(image, "WEBP", quality=78),
        sound=_sound(*sound) if sound else None,
    )


def _decoded_sound(container: av.container.InputContainer) -> tuple[np.ndarray, int] | None:
    """`(2, n)` samples in [-1, 1] and their rate."""
    if not container.streams.audio:
        return None
    stream = container.streams.audio[0]
    resampler = av.AudioResampler(format="fltp", layout="stereo", rate=stream.rate)
    pieces = [part.to_ndarray() for frame in container.decode(stream) for part in resampler.resample(frame)]
    pieces += [part.to_ndarray() for part in resampler.resample(None)]
    if not pieces:
        return None
    samples = np.concatenate(pieces, axis=1)
    if stream.duration is not None and stream.time_base is not None:
        # The encoder pads its last block; the container knows the true length.
        samples = samples[:, : int(stream.duration * stream.time_base * stream.rate)]
    return samples, stream.rate


def _sound(samples: np.ndarray, sample_rate: int) -> dict[str, Any]:
    return {
        "waveform": _address(waveform_picture(samples), "PNG", optimize=True),
        "spectrogram": _address(spectrogram_picture(samples, sample_rate), "PNG", optimize=True),
        "seconds": samples.shape[1] / sample_rate,
        "sample_rate": sample_rate,
        "peak": round(float(np.abs(samples).max(initial=0)), 4),
    }


def waveform_picture(samples: np.ndarray) -> Image.Image:
    """Peaks of `(2, n)` samples over time on a clear ground: left channel above the middle, right one below."""
    columns, rows = _SOUND_SIZE
    half = rows // 2
    picture = np.zeros((rows, columns), dtype=np.uint8)
    height = np.arange(half)[:, None]
    for channel, values in enumerate(samples):
        edges = np.linspace(0, values.size, columns + 1).astype(int)
        starts = np.minimum(edges[:-1], max(values.size - 1, 0))
        peaks = np.maximum.reduceat(np.abs(values), starts) if values.size else np.zeros(columns)
        # A silent column still shows its line.
        bars = height < np.maximum(1, np.round(np.clip(peaks, 0, 1) * (half - 1)))
        picture[half - 1 :: -1][bars] = 1 if channel == 0 else picture[half - 1 :: -1][bars]
        if channel == 1:
            picture[half:][bars] = 2
    return _paletted(picture, [(0, 0, 0), *_WAVES], transparency=0)


def spectrogram_picture(samples: np.ndarray, sample_rate: int) -> Image.Image:
    """Power over time, both channels together: 50 Hz to half the sample rate upwards in octaves, 80 dB from dark to
    light below the loudest; the loudest of silence is dark."""
    columns, rows = _SOUND_SIZE
    length = max(16, round(sample_rate * _WINDOW_SECONDS))
    padded = np.pad(samples, ((0, 0), (length // 2, length)))
    starts = np.linspace(0, samples.shape[1], columns, endpoint=False).astype(int)
    window = np.hanning(length)
    power = np.zeros((columns, length // 2 + 1))
    for channel in padded:
        pieces = np.lib.stride_tricks.sliding_window_view(channel, length)[starts]
        power += np.abs(np.fft.rfft(pieces * window, axis=1)) ** 2
    highest = sample_rate / 2
    edges = np.geomspace(min(_LOWEST_HZ, highest / 2), highest, rows + 1) * length / sample_rate  # in bins
    low = np.minimum(edges[:-1].astype(int), power.shape[1] - 1)
    bands = np.maximum.reduceat(power, low, axis=1)
    loudest = bands.max(initial=0)
    level = 10 * np.log10(np.maximum(bands, 1e-30) / loudest) if loudest > 0 else np.full_like(bands, -_RANGE_DB)
    shades = np.clip((level / _RANGE_DB + 1) * 63, 0, 63).round().astype(np.uint8)
    anchors = np.linspace(0, 63, len(_HEAT))
    colors = [np.interp(np.arange(64), anchors, [anchor[part] for anchor in _HEAT]) for part in range(3)]
    palette = [(int(r), int(g), int(b)) for r, g, b in zip(*colors, strict=True)]
    return _paletted(np.ascontiguousarray(shades.T[::-1]), palette)


def _paletted(indices: np.ndarray, colors: list[tuple[int, int, int]], transparency: int | None = None) -> Image.Image:
    image = Image.fromarray(indices, mode="L").convert("P")
    image.putdata(indices.flatten())
    image.putpalette([part for color in colors for part in color])
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


def _address(image: Image.Image, form: str, **options: Any) -> str:
    written = io.BytesIO()
    image.save(written, format=form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(written.getvalue()).decode('ascii')}"
