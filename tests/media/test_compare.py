"""The measures against direct loops in float64, and comparing runs from files."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ltxgen.config.errors import Refusal
from ltxgen.media import Mp4Writer, compare_audio, compare_frames, compare_runs, compare_tensors
from ltxgen.media.sound import Sound, write_wav


def noisy_pair(num_frames: int = 2, height: int = 16, width: int = 19) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    reference = torch.randint(0, 256, (num_frames, height, width, 3), dtype=torch.uint8, generator=generator)
    change = torch.randint(-40, 41, reference.shape, generator=generator)
    return (reference.int() + change).clamp(0, 255).to(torch.uint8), reference


def ssim_by_definition(a: np.ndarray, b: np.ndarray) -> float:
    """One window at a time, as in the paper: weighted means, variances and covariance around those means."""
    offsets = np.arange(11) - 5
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for frame_a, frame_b in zip(a.astype(np.float64), b.astype(np.float64), strict=True):
        for y in range(frame_a.shape[0] - 10):
            for x in range(frame_a.shape[1] - 10):
                for channel in range(3):
                    p, q = (frame[y : y + 11, x : x + 11, channel] for frame in (frame_a, frame_b))
                    mean_p, mean_q = (weights * p).sum(), (weights * q).sum()
                    var_p, var_q = (weights * (p - mean_p) ** 2).sum(), (weights * (q - mean_q) ** 2).sum()
                    covariance = (weights * (p - mean_p) * (q - mean_q)).sum()
                    luminance = (2 * mean_p * mean_q + c1) / (mean_p**2 + mean_q**2 + c1)
                    values.append(luminance * (2 * covariance + c2) / (var_p + var_q + c2))
    return float(np.mean(values))


def test_frames_against_definitions():
    ours, reference = noisy_pair()
    result = compare_frames(ours, reference)
    a, b = ours.numpy(), reference.numpy()
    difference = a.astype(np.float64) - b.astype(np.float64)
    assert result.mean_abs == pytest.approx(np.abs(difference).mean(), rel=1e-12)
    assert result.psnr == pytest.approx(20 * np.log10(255 / np.sqrt((difference**2).mean())), rel=1e-12)
    assert result.ssim == pytest.approx(ssim_by_definition(a, b), rel=1e-9)
    assert 0.5 < result.ssim < 0.99
    squares = (difference**2).mean(axis=(1, 2, 3))
    assert result.psnr_by_frame == pytest.approx(20 * np.log10(255 / np.sqrt(squares)), rel=1e-12)


def test_equal_frames():
    _, reference = noisy_pair()
    result = compare_frames(reference, reference)
    assert (result.mean_abs, result.psnr, result.psnr_by_frame) == (0.0, math.inf, (math.inf, math.inf))
    assert result.ssim == pytest.approx(1.0, abs=1e-12)


def test_audio_and_tensors_against_numpy():
    generator = np.random.default_rng(5)
    a, b = generator.normal(size=(2, 1, 2, 300))
    result = compare_audio(torch.tensor(a), torch.tensor(b))
    assert result.relative_l2 == pytest.approx(np.sqrt(((a - b) ** 2).sum() / (b**2).sum()))
    assert result.cosine == pytest.approx((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))
    silence = torch.zeros(2, 10)
    assert compare_audio(silence, silence).cosine == 1.0
    assert compare_audio(silence, torch.ones(2, 10)).cosine == 0.0
    assert compare_tensors(torch.ones(3), torch.zeros(3)) == math.inf
    assert compare_tensors(torch.zeros(3), torch.zeros(3)) == 0.0


@pytest.mark.parametrize("compare", [compare_frames, compare_audio, compare_tensors])
def test_shapes_must_agree(compare):
    with pytest.raises(Refusal, match=r"\(1, 16, 16, 3\) and \(2, 16, 16, 3\)"):
        compare(torch.zeros(1, 16, 16, 3), torch.zeros(2, 16, 16, 3))


def run_tensors(scale: float) -> dict[str, torch.Tensor]:
    frames, other = noisy_pair()
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(1, 4, 2, 2, 2, generator=generator)
    return {
        "frames": frames if scale == 1 else other,
        "audio.waveform": torch.randn(1, 2, 50, generator=generator) * scale,
        "base.final.video": latents * scale,
        "base.noise.video": latents * scale,
        "context.video.positive": (latents[0] * scale).contiguous(),
    }


def test_runs_with_tensors(tmp_path):
    for name, scale in (("a", 1.0), ("b", 2.0)):
        (tmp_path / name).mkdir()
        tensors = run_tensors(scale)
        if name == "b":
            tensors["refine.final.video"] = torch.zeros(1)
        save_file(tensors, tmp_path / name / "tensors.safetensors")
    result = compare_runs(tmp_path / "a", tmp_path / "b")
    assert result.frames == compare_frames(*noisy_pair())
    assert result.audio.relative_l2 == pytest.approx(0.5)
    assert result.audio.cosine == pytest.approx(1.0)
    assert result.latents == pytest.approx({"base.final.video": 0.5, "context.video.positive": 0.5})
    assert result.left_out == ("refine.final.video: only in the second",)
    assert ("audio", "relative_l2", "0.5") in result.rows()
    assert len(result.rows()) == 3 + 2 + 2 + 1
    assert result.rows()[-1] == ("refine.final.video", "not compared", "only in the second")
    everything = compare_runs(tmp_path / "a", tmp_path / "b", every_tensor=True)
    assert everything.latents["base.noise.video"] == pytest.approx(0.5)


def write_clip(path, fps=Fraction(24), num_frames=9, shade=0, sound=True):
    frames = torch.full((num_frames, 32, 32, 3), 90 + shade, dtype=torch.uint8)
    with Mp4Writer(path, fps) as mp4:
        mp4.write_frames(frames)
        if sound:
            mp4.write_audio(torch.sin(torch.arange(9600) / 30).expand(2, -1) * 0.5, 24_000)


def test_runs_with_videos(tmp_path):
    for name, shade in (("a", 0), ("b", 20)):
        (tmp_path / name).mkdir()
        write_clip(tmp_path / name / "video.mp4", shade=shade)
    save_file({"frames": torch.zeros(1)}, tmp_path / "a" / "tensors.safetensors")  # in one only: not used
    result = compare_runs(tmp_path / "a", tmp_path / "b" / "video.mp4")
    assert result.sources == "videos"
    assert result.frames.mean_abs == pytest.approx(20, abs=2)
    assert result.audio.relative_l2 == 0.0
    assert result.latents == {}
    assert any("latents" in line for line in result.left_out)


def test_runs_with_a_sound_alone(tmp_path):
    tone = torch.sin(torch.arange(9600) / 30).expand(1, 2, -1)
    for name, loudness, samples in (("a", 0.5, 9600), ("b", 0.25, 9600), ("shorter", 0.5, 9000)):
        (tmp_path / name).mkdir()
        write_wav(tmp_path / name / "sound.wav", Sound(loudness * tone[..., :samples], 24_000))
    result = compare_runs(tmp_path / "a", tmp_path / "b" / "sound.wav")
    assert (result.sources, result.frames, result.latents) == ("sounds", None, {})
    assert result.audio.relative_l2 == pytest.approx(1, abs=1e-3)
    assert compare_runs(tmp_path / "a", tmp_path / "a").audio.relative_l2 == 0
    with pytest.raises(Refusal, match=r"compare.audio = \(1, 2, 9600\) and \(1, 2, 9000\)"):
        compare_runs(tmp_path / "a", tmp_path / "shorter")
    (tmp_path / "bad.wav").write_bytes(b"not a sound at all")
    with pytest.raises(Refusal, match=r"compare.b = .*bad.wav: can't be read"):
        compare_runs(tmp_path / "a", tmp_path / "bad.wav")


def test_runs_that_differ_in_kind_are_refused(tmp_path):
    for name, options in {
        "a": {},
        "longer": {"num_frames": 17},
        "faster": {"fps": Fraction(25)},
        "silent": {"sound": False},
    }.items():
        write_clip(tmp_path / f"{name}.mp4", **options)
    with pytest.raises(Refusal, match=r"compare.frames = \(9, 32, 32, 3\) and \(17, 32, 32, 3\)"):
        compare_runs(tmp_path / "a.mp4", tmp_path / "longer.mp4")
    assert compare_runs(tmp_path / "a.mp4", tmp_path / "faster.mp4").left_out[0].startswith("fps: 24")
    silent = compare_runs(tmp_path / "a.mp4", tmp_path / "silent.mp4")
    assert silent.audio is None
    assert silent.left_out[0] == "audio: not in both"


def test_files_that_are_missing_or_broken_are_refused(tmp_path):
    with pytest.raises(Refusal) as refusal:
        compare_runs(tmp_path / "x", tmp_path / "y")
    assert [problem.path for problem in refusal.value.problems] == ["compare.a", "compare.b"]
    (tmp_path / "empty").mkdir()
    write_clip(tmp_path / "good.mp4")
    with pytest.raises(Refusal, match=r"compare.b = .*empty: holds no tensors"):
        compare_runs(tmp_path / "good.mp4", tmp_path / "empty")
    (tmp_path / "bad.mp4").write_bytes(b"not a video at all")
    with pytest.raises(Refusal, match=r"compare.a = .*bad.mp4: is no readable video"):
        compare_runs(tmp_path / "bad.mp4", tmp_path / "good.mp4")
    save_file({"frames": torch.zeros(2)}, tmp_path / "good.safetensors")
    (tmp_path / "bad.safetensors").write_bytes((tmp_path / "good.safetensors").read_bytes()[:40])
    with pytest.raises(Refusal, match=r"compare.b = .*bad.safetensors: is no readable safetensors"):
        compare_runs(tmp_path / "good.safetensors", tmp_path / "bad.safetensors")
    save_file({"other": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(Refusal, match="holds no tensor that"):
        compare_runs(tmp_path / "good.safetensors", tmp_path / "other.safetensors")
    save_file({"frames": torch.zeros(3)}, tmp_path / "longer.safetensors")
    with pytest.raises(Refusal, match=r"compare.frames: shapes differ: \[2\] and \[3\]"):
        compare_runs(tmp_path / "good.safetensors", tmp_path / "longer.safetensors")
    with pytest.raises(Refusal, match="is no file of a kind that"):
        compare_runs(tmp_path / "good.safetensors", tmp_path / "good.mp4")
