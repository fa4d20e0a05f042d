"""Sounds of files: whole and in part, from every common container, and back as wav."""

from __future__ import annotations

import wave
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from ltxgen.media.sound import BadMedia, Sound, read_sound, write_wav

RATE = 44100


def samples(seconds: float, channels: int = 2, rate: int = RATE) -> np.ndarray:
    """(channels, n) int16, a rising tone of another pitch in each channel."""
    t = np.arange(round(seconds * rate)) / rate
    tones = [np.sin(2 * np.pi * (300 + 150 * channel + 200 * t) * t) for channel in range(channels)]
    return (12000 * np.stack(tones)).astype(np.int16)


def write(path: Path, codec: str, content: np.ndarray, layout: str = "stereo", rate: int = RATE) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        interleaved = np.ascontiguousarray(content.T).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(interleaved, format="s16", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return path


@pytest.mark.parametrize(("name", "codec"), [("a.wav", "pcm_s16le"), ("a.flac", "flac")])
def test_lossless_sound_is_itself(tmp_path: Path, name: str, codec: str):
    content = samples(0.5)
    sound = read_sound(write(tmp_path / name, codec, content))
    assert sound is not None
    assert sound.sample_rate == RATE
    assert torch.equal(sound.waveform[0], torch.from_numpy(content.astype(np.float32) / 32768))


@pytest.mark.parametrize(("start", "duration"), [(0.0, 0.2), (0.123, 0.25), (0.4, None), (0.4, 3.0)])
def test_a_part_is_a_slice(tmp_path: Path, start: float, duration: float | None):
    content = samples(0.5)
    sound = read_sound(write(tmp_path / "a.wav", "pcm_s16le", content), start, duration)
    first = round(start * RATE)
    last = None if duration is None else first + round(duration * RATE)
    assert sound is not None
    assert torch.equal(sound.waveform[0], torch.from_numpy(content[:, first:last].astype(np.float32) / 32768))


def test_beyond_the_end_is_nothing(tmp_path: Path):
    sound = read_sound(write(tmp_path / "a.wav", "pcm_s16le", samples(0.1)), 0.2, 1.0)
    assert sound is not None
    assert sound.seconds == 0


@pytest.mark.parametrize(("name", "codec"), [("a.mp3", "libmp3lame"), ("a.m4a", "aac"), ("a.mp4", "aac")])
@pytest.mark.parametrize("start", [0.0, 0.3])
def test_lossy_sound_is_in_time(tmp_path: Path, name: str, codec: str, start: float):
    if codec == "libmp3lame" and not _has(codec):
        pytest.skip("this PyAV has no mp3 encoder")
    content = samples(1.0)
    sound = read_sound(write(tmp_path / name, codec, content), start, 0.5)
    assert sound is not None
    first = round(start * RATE)
    wanted = torch.from_numpy(content[:, first : first + sound.waveform.shape[-1]] / 32768.0).float()
    assert sound.waveform.shape == (1, 2, RATE // 2)
    inside = slice(2048, None)  # an encoder's own beginning is rough
    error = (sound.waveform[0, :, inside] - wanted[:, inside]).norm() / wanted[:, inside].norm()
    assert error < 0.06  # of the codec; a sample earlier or later it is 0.07 and more


def test_mono_is_doubled_and_six_channels_are_mixed_down(tmp_path: Path):
    content = samples(0.2, channels=1)
    mono = read_sound(write(tmp_path / "mono.wav", "pcm_s16le", content, "mono"))
    assert mono is not None
    assert torch.equal(mono.waveform[0], torch.from_numpy(content.astype(np.float32) / 32768).expand(2, -1))
    six = read_sound(write(tmp_path / "six.wav", "pcm_s16le", samples(0.2, channels=6), "5.1"))
    assert six is not None
    assert six.waveform.shape == (1, 2, round(0.2 * RATE))
    assert six.waveform.abs().max() > 0.1


def test_files_without_sound(tmp_path: Path):
    with av.open(str(tmp_path / "silent.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        for packet in [*stream.encode(picture), *stream.encode(None)]:
            container.mux(packet)
    assert read_sound(tmp_path / "silent.mp4") is None
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(BadMedia, match=r"can't be read \(Invalid data"):
        read_sound(tmp_path / "text.wav")
    with pytest.raises(BadMedia, match=r"can't be read \(No such file"):
        read_sound(tmp_path / "nothing.wav")


def test_wav_is_written_in_16_bits(tmp_path: Path):
    waveform = torch.tensor([[[0.0, 0.5, -0.5, 1.5], [1.0, -1.0, 0.25, -1.5]]])
    with wave.open(str(write_wav(tmp_path / "a.wav", Sound(waveform, 48000))), "rb") as file:
        assert (file.getnchannels(), file.getframerate(), file.getsampwidth()) == (2, 48000, 2)
        written = np.frombuffer(file.readframes(4), "<i2").reshape(4, 2).T
    assert written.tolist() == [[0, 16383, -16383, 32767], [32767, -32767, 8191, -32767]]
    with pytest.raises(ValueError, match="1 NaN"):
        write_wav(tmp_path / "b.wav", Sound(torch.tensor([[[0.0], [float("nan")]]]), 48000))
    assert not (tmp_path / "b.wav").exists()


def _has(codec: str) -> bool:
    try:
        av.codec.Codec(codec, "w")
    except ValueError:
        return False
    return True
