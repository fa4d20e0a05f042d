"""Whether the codecs of an mp4 work here: a few frames and a moment of sound, there and back, in memory."""

from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction

import av
import numpy as np
from av.container import InputContainer, OutputContainer

from ltxgen.media.mp4 import AUDIO_ENCODER, VIDEO_ENCODER

_FRAMES, _SIDE = 3, 64
_SAMPLE_RATE, _SAMPLES = 48000, 4800


def try_video() -> str | None:
    """Why H.264 can't be encoded or decoded; None if it can."""

    def write(container: OutputContainer) -> None:
        stream = container.add_stream(VIDEO_ENCODER, rate=24, options={"preset": "veryfast"})
        assert isinstance(stream, av.VideoStream)
        stream.width = stream.height = _SIDE
        stream.pix_fmt = "yuv420p"
        for number in range(_FRAMES):
            grey = np.full((_SIDE, _SIDE, 3), 80 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode(None))

    def read(container: InputContainer) -> str | None:
        num_frames = sum(1 for _ in container.decode(video=0))
        return None if num_frames == _FRAMES else f"of {_FRAMES} frames {num_frames} came back"

    return _there_and_back(write, read)


def try_sound() -> str | None:
    """Why AAC can't be encoded or decoded; None if it can."""

    def write(container: OutputContainer) -> None:
        stream = container.add_stream(AUDIO_ENCODER, rate=_SAMPLE_RATE, layout="stereo")
        assert isinstance(stream, av.AudioStream)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 2 * _SAMPLES), np.int16), format="s16", layout="stereo")
        sound.sample_rate, sound.pts, sound.time_base = _SAMPLE_RATE, 0, Fraction(1, _SAMPLE_RATE)
        container.mux([*stream.encode(sound), *stream.encode(None)])

    def read(container: InputContainer) -> str | None:
        num_samples = sum(frame.samples for frame in container.decode(audio=0))
        return None if num_samples >= _SAMPLES else f"of {_SAMPLES} samples {num_samples} came back"

    return _there_and_back(write, read)


def _there_and_back(
    write: Callable[[OutputContainer], None], read: Callable[[InputContainer], str | None]
) -> str | None:
    memory = io.BytesIO()
    try:
        with av.open(memory, "w", format="mp4") as made:
            write(made)
        memory.seek(0)
        with av.open(memory, "r") as again:
            return read(again)
    except (av.FFmpegError, ValueError) as error:  # ValueError: no such codec
        return f"{type(error).__name__}: {error}"
