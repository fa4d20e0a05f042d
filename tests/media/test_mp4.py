"""What is encoded is decoded again, with PyAV directly, and compared: picture, sound, tags, rates, and what fails."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
import torch

from ltxgen.media import Mp4Settings, Mp4Writer, check_encoders, estimated_bytes, read_video

NTSC = Fraction(30000, 1001)


def moving_picture(num_frames: int, height: int = 64, width: int = 96) -> torch.Tensor:
    """Smooth, coloured, moving: what an encoder at CRF 19 keeps."""
    f, y, x = torch.meshgrid(torch.arange(num_frames), torch.arange(height), torch.arange(width), indexing="ij")
    waves = [torch.sin(x / 17 + f / 5), torch.cos(y / 13 - f / 7), torch.sin((x + y) / 23 + f / 9)]
    return ((torch.stack(waves, dim=-1) * 0.45 + 0.5) * 255).to(torch.uint8)


def two_tones(num_samples: int, sample_rate: int) -> torch.Tensor:
    seconds = torch.arange(num_samples) / sample_rate
    return torch.stack([torch.sin(2 * torch.pi * 440 * seconds), torch.sin(2 * torch.pi * 660 * seconds)]) * 0.5


def decibels(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))


@pytest.fixture
def written(tmp_path):
    """A clip of 33 frames at 30000/1001 in three chunks, with 1.1 s of sound at 48 kHz."""
    frames, waveform = moving_picture(33), two_tones(52_800, 48_000)
    with Mp4Writer(tmp_path / "video.mp4", NTSC, Mp4Settings(comment="seed 7")) as mp4:
        for chunk in frames.split([9, 16, 8]):
            mp4.write_frames(chunk)
        mp4.write_audio(waveform[None], 48_000)
    return mp4.path, frames, waveform


def test_picture_and_sound_survive(written):
    path, frames, waveform = written
    clip = read_video(path)
    assert clip.frames.shape == frames.shape
    assert decibels(clip.frames.numpy(), frames.numpy()) > 36
    # In step: a shift by one frame would be a far worse match.
    assert decibels(clip.frames[1:].numpy(), frames[:-1].numpy()) < 32
    assert clip.waveform.shape == waveform.shape
    assert float((clip.waveform - waveform).norm() / waveform.norm()) < 0.1
    assert float((clip.waveform.flip(0) - waveform).norm() / waveform.norm()) > 1  # left stays left


def test_tags_rates_and_lengths(written):
    path, frames, waveform = written
    assert [file.name for file in path.parent.iterdir()] == ["video.mp4"]
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        codec = video.codec_context
        assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")
        assert (codec.color_range, codec.colorspace, codec.color_primaries, codec.color_trc) == (1, 1, 1, 1)
        assert video.average_rate == NTSC
        assert video.frames == len(frames)
        assert video.duration * video.time_base == len(frames) / NTSC
        times = sorted(packet.pts * packet.time_base for packet in container.demux(video) if packet.pts is not None)
        assert times == [index / NTSC for index in range(len(frames))]
        assert (audio.codec_context.name, audio.rate, audio.codec_context.layout.name) == ("aac", 48_000, "stereo")
        assert audio.duration * audio.time_base * audio.rate == waveform.shape[1]
        assert container.metadata["comment"] == "seed 7"


def test_faststart_and_interleaving(written):
    path, _, _ = written
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(path)) as container:
        places = sorted((packet.pos, packet.stream.type) for packet in container.demux() if packet.dts is not None)
    changes = sum(before[1] != after[1] for before, after in pairwise(places))
    assert changes > 4, "sound and picture lie in turns in the file"


def test_sound_and_picture_lie_in_turns_in_long_clips_too(tmp_path):
    """Muxers put packets in order by themselves, but only within 10 seconds."""
    with Mp4Writer(tmp_path / "video.mp4", Fraction(1)) as mp4:
        mp4.write_frames(moving_picture(60, 32, 32))
        mp4.write_audio(torch.zeros(2, 60 * 8000), 8000)
    with av.open(str(mp4.path)) as container:
        packets = [packet for packet in container.demux() if packet.dts is not None]
        times = [float(p.dts * p.time_base) for p in sorted(packets, key=lambda packet: packet.pos)]
    behind = max(before - after for before, after in pairwise(times))
    assert behind <= 1.0, "nothing lies further behind than the muxer's chunks of a second"


def test_luma_is_limited_range(tmp_path):
    frames = torch.zeros(5, 32, 32, 3, dtype=torch.uint8)
    frames[:, :, 16:] = 255
    with Mp4Writer(tmp_path / "video.mp4", Fraction(24), Mp4Settings(crf=1)) as mp4:
        mp4.write_frames(frames.numpy())
    with av.open(str(mp4.path)) as container:
        planes = next(container.decode(video=0)).to_ndarray()
        assert not container.streams.audio
    assert abs(planes[:32, :12].mean() - 16) < 0.5
    assert abs(planes[:32, 20:].mean() - 235) < 0.5
    assert abs(planes[32:].mean() - 128) < 0.5


@pytest.mark.parametrize(
    "fps", [Fraction(24), Fraction(25), Fraction(24000, 1001), Fraction("23.976"), Fraction(97, 4), Fraction(1, 2)]
)
def test_frame_rate_is_exact(tmp_path, fps):
    with Mp4Writer(tmp_path / "video.mp4", fps) as mp4:
        mp4.write_frames(moving_picture(9, 32, 32))
    with av.open(str(mp4.path)) as container:
        video = container.streams.video[0]
        assert video.average_rate == fps
        assert video.duration * video.time_base == 9 / fps


@pytest.mark.parametrize("sample_rate", [16_000, 24_000])
def test_sample_rates_of_other_vocoders(tmp_path, sample_rate):
    waveform = two_tones(sample_rate // 2, sample_rate)
    with Mp4Writer(tmp_path / "video.mp4", Fraction(24)) as mp4:
        mp4.write_audio(waveform, sample_rate)  # sound first is fine too
        mp4.write_frames(moving_picture(9, 32, 32))
    clip = read_video(mp4.path)
    assert clip.sample_rate == sample_rate
    assert clip.waveform.shape == waveform.shape


def test_sound_is_clamped_and_truncated(tmp_path):
    from ltxgen.media.mp4 import as_int16

    samples = np.array([[2.0, -3.0, 1.0, 0.99999, -0.99999, 0.5]], dtype=np.float32)
    assert as_int16(samples).tolist() == [[32767, -32767, 32767, 32766, -32766, 16383]]


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("error", [Interrupted, KeyboardInterrupt])
def test_nothing_stays_after_an_exception(tmp_path, error):
    def stop_half_way():
        with Mp4Writer(tmp_path / "video.mp4", Fraction(24)) as mp4:
            mp4.write_frames(moving_picture(17))
            raise error

    with pytest.raises(error):
        stop_half_way()
    assert list(tmp_path.iterdir()) == []


def test_nothing_stays_when_muxing_is_interrupted(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt), Mp4Writer(tmp_path / "video.mp4", Fraction(24)) as mp4:
        mp4.write_frames(moving_picture(9))
    assert list(tmp_path.iterdir()) == []


def test_an_older_file_survives_a_failure(tmp_path, monkeypatch):
    (tmp_path / "video.mp4").write_text("the last run's")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"), Mp4Writer(tmp_path / "video.mp4", Fraction(24)) as mp4:
        mp4.write_frames(moving_picture(9))
    assert [file.name for file in tmp_path.iterdir()] == ["video.mp4"]
    assert (tmp_path / "video.mp4").read_text() == "the last run's"


def test_a_disk_that_fills_up_leaves_nothing(tmp_path):
    """A real write error inside the muxer: a process that may write 8 KiB to a file."""
    script = f"""
        import resource, signal, torch
        from fractions import Fraction
        from ltxgen.media.mp4 import Mp4Writer
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
        frames = torch.randint(0, 256, (9, 64, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        try:
            with Mp4Writer({str(tmp_path / "video.mp4")!r}, Fraction(24)) as mp4:
                mp4.write_frames(frames)
        except OSError as error:
            print("refused by the system:", error.filename)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False, timeout=120
    )
    assert result.stdout == f"refused by the system: {tmp_path / 'video.mp4'}\n", result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_sound_that_is_not_finite_is_refused(tmp_path, value):
    waveform = two_tones(4800, 48_000)
    waveform[1, 100] = value
    with pytest.raises(ValueError, match="1 NaN or infinite samples"), Mp4Writer(tmp_path / "v.mp4", NTSC) as mp4:
        mp4.write_audio(waveform, 48_000)
    assert list(tmp_path.iterdir()) == []


def test_what_can_not_be_encoded_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Mp4Writer(tmp_path / "missing" / "video.mp4", NTSC)
    for fps in (Fraction(0), Fraction(-24), Fraction(2**40 + 1, 2**36)):
        with pytest.raises(ValueError, match="frames per second"):
            Mp4Writer(tmp_path / "video.mp4", fps)
    with pytest.raises(ValueError, match="sample rate of 47999"), Mp4Writer(tmp_path / "v.mp4", NTSC) as mp4:
        mp4.write_audio(two_tones(100, 48_000), 47_999)
    with pytest.raises(ValueError, match="no frames"), Mp4Writer(tmp_path / "v.mp4", NTSC):
        pass
    with pytest.raises(AssertionError), Mp4Writer(tmp_path / "v.mp4", NTSC) as mp4:
        mp4.write_frames(moving_picture(1, 33, 32))
    assert list(tmp_path.iterdir()) == []


def test_missing_encoders_are_named(monkeypatch):
    assert check_encoders() == []
    monkeypatch.setattr("ltxgen.media.mp4.VIDEO_ENCODER", "libx999")
    assert check_encoders() == ["libx999"]


def test_estimate_holds_for_pictures(written):
    path, frames, _ = written
    assert path.stat().st_size < estimated_bytes(*frames.shape[:3])
