"""Clips that a run starts from: facts, frames, and what is refused."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from ltxgen.media.clip import ClipFacts, clip_facts, read_frames
from ltxgen.media.mp4 import Mp4Settings, Mp4Writer
from ltxgen.media.sound import BadMedia

FPS = Fraction(30000, 1001)


def pictures(num_frames: int = 9, height: int = 64, width: int = 96) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    frames = [torch.stack([2 * columns + 8 * f, 3 * rows + 4 * f, rows + columns], -1) for f in range(num_frames)]
    return (torch.stack(frames) % 256).to(torch.uint8)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    with Mp4Writer(tmp_path / "clip.mp4", FPS, Mp4Settings(crf=4)) as writer:
        writer.write_frames(pictures())
        writer.write_audio(torch.zeros(2, 8000), 16000)
    return tmp_path / "clip.mp4"


def test_facts(clip: Path, tmp_path: Path):
    assert clip_facts(clip) == ClipFacts(width=96, height=64, num_frames=9, fps=FPS, has_sound=True)
    assert clip_facts(clip).seconds == pytest.approx(9 * 1001 / 30000)


def test_lossless_frames_are_themselves(tmp_path: Path):
    frames = pictures()
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=24)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "bgr0"
        for frame in frames.numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    assert not clip_facts(tmp_path / "a.mkv").has_sound
    assert torch.equal(read_frames(tmp_path / "a.mkv", 9), frames)
    assert torch.equal(read_frames(tmp_path / "a.mkv", 4), frames[:4])


def test_colours_follow_the_tag(clip: Path):
    """Our own files say BT.709; read as BT.601, saturated colours are off by 20 and more."""
    frames = pictures()
    smooth = slice(8, 24)  # away from the edges where the colours wrap around
    read = read_frames(clip, 9)
    assert (read[0, smooth, smooth].float() - frames[0, smooth, smooth].float()).abs().mean() < 4


def test_what_is_no_clip(clip: Path, tmp_path: Path):
    with pytest.raises(BadMedia, match="of the 17 that are wanted"):
        read_frames(clip, 17)
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:2000])
    for name, message in (("none.mp4", "No such file"), ("cut.mp4", "can't be read")):
        with pytest.raises(BadMedia, match=message):
            clip_facts(tmp_path / name)
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts = 16000, 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    with pytest.raises(BadMedia, match="has no picture"):
        clip_facts(tmp_path / "sound.wav")
