"""Sounds of files: read from any container and codec that FFmpeg knows, and written as wav."""

from __future__ import annotations

import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from ltxgen.media.container import open_media
from ltxgen.media.files import whole_file
from ltxgen.media.mp4 import as_int16, stereo

# Codecs with overlapping blocks need the one before to decode one right; a start inside the file is led in by this.
_LEAD_SECONDS = 0.2
_NUM_CHANNELS = 2


class BadMedia(ValueError):
    """A file that can't be used; the text says why and completes "request.audio.path = song.mp3: "."""


@dataclass(frozen=True)
class Sound:
    """A waveform (1, 2, samples) in [-1, 1] and its samples per second."""

    waveform: Tensor
    sample_rate: int

    @property
    def seconds(self) -> float:
        return self.waveform.shape[-1] / self.sample_rate


def read_sound(path: Path | str, start_seconds: float = 0.0, duration_seconds: float | None = None) -> Sound | None:
    """The first sound of `path` from a start on, `duration_seconds` of it or all; None for a file without sound.

    Shorter than asked for, down to nothing, where the file ends before. Mono is doubled, more channels than two are
    mixed down by FFmpeg's rules; stereo samples are the file's own, as the official `decode_audio_from_file` has them
    (ltx_pipelines/utils/media_io.py). Raises BadMedia.
    """
    try:
        with open_media(path) as container:
            if not container.streams.audio:
                return None
            stream = container.streams.audio[0]
            rate = stream.rate
            pieces, first = _decoded(container, stream, start_seconds, duration_seconds)
    except (OSError, av.FFmpegError) as error:
        raise BadMedia(f"can't be read ({reason_of(error)}); give a sound or video file") from error
    samples = np.concatenate(pieces, axis=1) if pieces else np.zeros((_NUM_CHANNELS, 0), np.float32)
    # Codecs decode whole blocks, which begin before the start and end after the end; before a sound that begins later
    # than its file is silence.
    early = round((start_seconds - first) * rate)
    samples = samples[:, early:] if early > 0 else np.pad(samples, ((0, 0), (-early, 0)))
    if duration_seconds is not None:
        samples = samples[:, : round(duration_seconds * rate)]
    return Sound(torch.from_numpy(np.ascontiguousarray(samples))[None], rate)


def _decoded(
    container: av.container.InputContainer, stream: av.AudioStream, start: float, duration: float | None
) -> tuple[list[np.ndarray], float]:
    """Blocks (2, n) float32 that cover the wanted part, and when the first one begins, in seconds of the file."""
    assert stream.time_base is not None
    offset = max(0, container.start_time or 0) / av.time_base  # an mp3 begins 25 ms late, a broadcast whenever
    container.seek(int(max(0.0, start - _LEAD_SECONDS + offset) / stream.time_base), stream=stream)
    pieces: list[np.ndarray] = []
    first: float | None = None
    for frame in container.decode(stream):
        if frame.pts is None:
            continue
        begins = float(frame.pts * stream.time_base) - offset
        if begins + frame.samples / frame.sample_rate < start:
            continue
        if duration is not None and begins > start + duration:
            break
        first = begins if first is None else first
        pieces += _stereo(frame)
    return pieces, start if first is None else first


def _stereo(frame: av.AudioFrame) -> Iterator[np.ndarray]:
    layout = frame.layout.name if frame.layout.nb_channels <= _NUM_CHANNELS else "stereo"
    for part in av.AudioResampler(format="fltp", layout=layout).resample(frame):
        samples = part.to_ndarray()
        yield np.repeat(samples, _NUM_CHANNELS, axis=0) if len(samples) == 1 else samples


def write_wav(path: Path, sound: Sound) -> Path:
    """Write a sound in 16 bits, whole or not at all; ValueError for a NaN or infinite sample."""
    samples = as_int16(stereo(sound.waveform))
    with whole_file(path) as partial, wave.open(str(partial), "wb") as file:
        file.setnchannels(_NUM_CHANNELS)
        file.setsampwidth(2)
        file.setframerate(sound.sample_rate)
        file.writeframes(np.ascontiguousarray(samples.T).astype("<i2").tobytes())
    return path


def reason_of(error: Exception) -> str:
    """What FFmpeg or the system says, without the path."""
    return getattr(error, "strerror", None) or str(error)
