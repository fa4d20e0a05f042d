"""A playable mp4 from frames that arrive while tiles decode: H.264 4:2:0 tagged BT.709, AAC stereo, exact frame rate.

The encode follows the current official code: libx264 at CRF 19, preset veryfast, with its own RGB to YUV conversion
(`pixels.rgb_to_yuv420`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
import torch
from torch import Tensor

from ltxgen.media.files import partial_path, whole_file
from ltxgen.media.pixels import rgb_to_yuv420

VIDEO_ENCODER = "libx264"
AUDIO_ENCODER = "aac"
AAC_SAMPLE_RATES = (7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)

_BT709 = 1  # AVCOL_SPC_BT709, AVCOL_PRI_BT709 and AVCOL_TRC_BT709
_LIMITED_RANGE = 1  # AVCOL_RANGE_MPEG
_LARGEST_TIMESCALE = 2**31 - 1  # ffmpeg's rationals are pairs of 32-bit integers

# x264's macroblock tree works on 8 blocks of 16 pixels at once and, where a row ends within them, also on what happens
# to lie behind: the same frames then give one of several files. Without it they give one.
_MACROBLOCK, _MBTREE_VECTOR = 16, 8


@dataclass(frozen=True)
class Mp4Settings:
    """How to encode: libx264's constant rate factor (0 lossless to 51 worst) and preset."""

    crf: int = 19
    preset: str = "veryfast"


class Mp4Writer:
    """Encode frames as they come, then the sound, and write the file whole on `close`.

    Used as a context manager, it closes at the end of the block and aborts when the block raises. Encoded packets are
    kept in memory (some megabytes) until then: so sound and picture are interleaved whichever comes first, and a run
    that is stopped, by whatever means, leaves nothing on the disk. What `comment` is then becomes the comment tag.

        with Mp4Writer(folder / "video.mp4", Fraction(24)) as mp4:
            for frames in decoded: mp4.write_frames(frames)
            mp4.write_audio(waveform, 48000)

    Raises FileNotFoundError at once when the folder is missing, ValueError for content that can't be encoded, and
    OSError from `close` (a full disk, say), after which nothing is left.
    """

    def __init__(self, path: Path | str, fps: Fraction, settings: Mp4Settings | None = None) -> None:
        self.path = Path(path)
        self.fps = Fraction(fps)
        self.settings = settings or Mp4Settings()
        self.num_frames = 0
        self.comment = ""
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"the folder '{self.path.parent}' does not exist")
        if self.fps <= 0 or max(self.fps.numerator, self.fps.denominator) > _LARGEST_TIMESCALE:
            raise ValueError(f"{self.fps} frames per second can't be written; give a positive rate such as 30000/1001")
        self._partial = partial_path(self.path)
        # The file itself is made by the first mux, in close().
        options = {"movflags": "+faststart", "movie_timescale": str(_movie_timescale(self.fps))}
        self._container = av.open(str(self._partial), "w", format="mp4", options=options)
        self._video: av.VideoStream | None = None
        self._audio: av.AudioStream | None = None
        self._packets: list[av.Packet] = []
        self._open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abort()
        elif self._open:
            self.close()

    def write_frames(self, frames: Tensor | np.ndarray) -> None:
        """Encode the next frames, `(F, H, W, 3)` uint8 RGB; a tensor on a GPU is converted there.

        All calls must agree on H and W, which are even.
        """
        assert self._open, "the file is closed"
        frames = torch.as_tensor(frames)
        assert frames.dtype == torch.uint8, "frames are uint8; see to_uint8"
        assert frames.shape[3:] == (3,), "(F, H, W, 3)"
        _, H, W, _ = frames.shape
        video = self._add_video(H, W) if self._video is None else self._video
        assert (video.height, video.width) == (H, W), "every frame has the same size"
        for frame in frames:
            planes = rgb_to_yuv420(frame).cpu().numpy()
            picture = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            picture.colorspace, picture.color_range = _BT709, _LIMITED_RANGE
            picture.pts, picture.time_base = self.num_frames, 1 / self.fps
            self._packets += video.encode(picture)
            self.num_frames += 1

    def write_audio(self, waveform: Tensor | np.ndarray, sample_rate: int) -> None:
        """Encode the sound, once: `(2, n)` or `(1, 2, n)` in [-1, 1], at one of `AAC_SAMPLE_RATES`.

        Values beyond [-1, 1] are clamped. Raises ValueError for NaN or infinite samples and for other rates.
        """
        assert self._open, "the file is closed"
        assert self._audio is None, "the sound is written once"
        samples = as_int16(stereo(waveform))
        if sample_rate not in AAC_SAMPLE_RATES:
            raise ValueError(
                f"AAC has no sample rate of {sample_rate} Hz; it has {', '.join(map(str, AAC_SAMPLE_RATES))}"
            )
        audio = self._container.add_stream(AUDIO_ENCODER, rate=sample_rate, layout="stereo")
        assert isinstance(audio, av.AudioStream)
        self._audio = audio
        interleaved = np.ascontiguousarray(samples.T).reshape(1, -1)
        sound = av.AudioFrame.from_ndarray(interleaved, format="s16", layout="stereo")
        sound.sample_rate, sound.pts, sound.time_base = sample_rate, 0, Fraction(1, sample_rate)
        self._packets += [*audio.encode(sound), *audio.encode(None)]

    def close(self) -> Path:
        """Write the file and return its path. Raises ValueError when no frame came, OSError when writing fails."""
        assert self._open, "the file is closed"
        self._open = False
        if self._video is None:
            raise ValueError(f"no frames came for '{self.path}'; nothing was written")
        self._packets += self._video.encode(None)
        # By decoding time; the sort is stable, so each stream keeps its own order.
        self._packets.sort(key=_decoding_seconds)
        if self.comment:
            self._container.metadata["comment"] = self.comment
        with whole_file(self.path, self._partial):
            for packet in self._packets:
                self._container.mux(packet)
            self._container.close()
        self._packets.clear()
        return self.path

    def abort(self) -> None:
        """Drop what was encoded; nothing reached the disk."""
        self._open = False
        self._packets.clear()

    def _add_video(self, height: int, width: int) -> av.VideoStream:
        assert height % 2 == width % 2 == 0, "4:2:0 needs even sizes"
        options = {"crf": str(self.settings.crf), "preset": self.settings.preset}
        if math.ceil(width / _MACROBLOCK) % _MBTREE_VECTOR:
            options["x264-params"] = "mbtree=0"
        video = self._container.add_stream(VIDEO_ENCODER, rate=self.fps, options=options)
        assert isinstance(video, av.VideoStream)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.time_base = video.codec_context.time_base = 1 / self.fps
        encoder = video.codec_context
        encoder.color_range = _LIMITED_RANGE
        encoder.colorspace = encoder.color_primaries = encoder.color_trc = _BT709
        self._video = video
        return video


def check_encoders() -> list[str]:
    """The encoders that an mp4 needs and this PyAV lacks; empty when all are there."""
    return [name for name in (VIDEO_ENCODER, AUDIO_ENCODER) if not _has_encoder(name)]


def estimated_bytes(num_frames: int, height: int, width: int) -> int:
    """A generous size of the mp4 at the default settings: 0.25 bytes a pixel; films take a tenth of it."""
    return num_frames * height * width // 4 + 2**20


def stereo(waveform: Tensor | np.ndarray) -> np.ndarray:
    """A waveform `(2, n)` or `(1, 2, n)` as float32 `(2, n)` on the CPU; ValueError for a NaN or infinite sample."""
    samples = torch.as_tensor(waveform).detach().to("cpu", torch.float32)
    if samples.ndim == 3:
        assert samples.shape[0] == 1, "one sound at a time"
        samples = samples[0]
    assert samples.ndim == 2, "(2, n)"
    assert samples.shape[0] == 2, "two channels"
    bad = int((~torch.isfinite(samples)).sum())
    if bad:
        raise ValueError(f"the sound holds {bad} NaN or infinite samples of {samples.numel()}; nothing was written")
    return samples.numpy()


def _movie_timescale(fps: Fraction) -> int:
    """Ticks a second of the file's overall clock, so that its length is a whole number of frames, as it is of samples:
    vocoders make 10 ms at a time. The muxer's own 1000 would round the length of most clips."""
    exact = math.lcm(1000, fps.numerator)
    return exact if exact <= _LARGEST_TIMESCALE else 1000


def _decoding_seconds(packet: av.Packet) -> Fraction:
    assert packet.dts is not None, "encoders stamp their packets"
    assert packet.time_base is not None
    return packet.dts * packet.time_base


def as_int16(samples: np.ndarray) -> np.ndarray:
    """Samples in [-1, 1] as 16-bit ones, values beyond clamped; truncated, as the official code does."""
    return (np.clip(samples, -1, 1) * np.float32(32767)).astype(np.int16)  # astype truncates


def _has_encoder(name: str) -> bool:
    try:
        av.codec.Codec(name, "w")
    except ValueError:  # av.codec.codec.UnknownCodecError
        return False
    return True
