"""Read a video file back: frames, sound and their exact rates."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from ltxgen.media.container import open_media
from ltxgen.media.pixels import BT601, BT709, YuvMatrix, yuv420_to_rgb

_BT709 = 1  # AVCOL_SPC_BT709
_FULL_RANGE = 2  # AVCOL_RANGE_JPEG


@dataclass(frozen=True)
class Clip:
    """`frames` (F, H, W, 3) uint8 RGB; `waveform` (2, n) float32 in [-1, 1] at `sample_rate`, or None for both."""

    frames: Tensor
    fps: Fraction
    waveform: Tensor | None
    sample_rate: int | None


def read_video(path: Path | str) -> Clip:
    """Decode the first video stream of `path`, and its first sound (as stereo), whole.

    4:2:0 frames are converted with the matrix of the file's own tag, BT.601 where it has none (swscale's default, and
    so what untagged files mostly hold); PyAV's own choice differs between its versions. Raises OSError or
    av.FFmpegError for a file that can't be read, ValueError for one without video.
    """
    with open_media(path) as container:
        if not container.streams.video:
            raise ValueError(f"'{path}' has no video stream")
        video = container.streams.video[0]
        video.thread_type = "AUTO"
        audio = container.streams.audio[0] if container.streams.audio else None
        pictures: list[Tensor] = []
        sound: list[np.ndarray] = []
        resampler = av.AudioResampler(format="fltp", layout="stereo", rate=audio.rate) if audio else None
        for frame in container.decode(*([video, audio] if audio else [video])):
            if isinstance(frame, av.VideoFrame):
                pictures.append(rgb_of(frame))
            elif resampler:
                sound += [part.to_ndarray() for part in resampler.resample(frame)]
        if resampler:
            sound += [part.to_ndarray() for part in resampler.resample(None)]
        if not pictures or video.average_rate is None:
            raise ValueError(f"'{path}' has no frames")
        waveform = torch.from_numpy(np.concatenate(sound, axis=1)) if sound else None
        if waveform is not None and audio is not None and audio.duration is not None and audio.time_base:
            # The encoder pads its last block; the container knows the true length.
            waveform = waveform[:, : int(audio.duration * audio.time_base * audio.rate)]
        rate = audio.rate if audio is not None and waveform is not None else None
        return Clip(torch.stack(pictures), Fraction(video.average_rate), waveform, rate)


def rgb_of(frame: av.VideoFrame) -> Tensor:
    """One decoded frame as (H, W, 3) uint8."""
    if frame.format.name not in ("yuv420p", "yuvj420p"):
        return torch.from_numpy(frame.to_ndarray(format="rgb24"))
    matrix = BT709 if frame.colorspace == _BT709 else BT601
    limited = frame.format.name == "yuv420p" and frame.color_range != _FULL_RANGE
    planes = torch.from_numpy(frame.to_ndarray())
    return yuv420_to_rgb(planes, YuvMatrix(matrix.red, matrix.blue, limited))
