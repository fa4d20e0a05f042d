"""How far two runs are apart: frames (mean absolute difference, PSNR, SSIM), sound (relative L2, cosine), latents
(relative L2). The second of each pair is the reference.

SSIM: Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ltxgen.config.errors import MISSING, Problem, Refusal
from ltxgen.media.read import Clip, read_video
from ltxgen.media.sound import BadMedia, Sound, read_sound

TENSORS_NAME = "tensors.safetensors"
VIDEO_NAME = "video.mp4"
SOUND_NAME = "sound.wav"

_NO_LATENTS = f"latents: not in both (they need {TENSORS_NAME}, which output.tensors=true writes)"
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


@dataclass(frozen=True)
class FrameDifference:
    """`mean_abs` in 8-bit levels, `psnr` in dB (infinite for equal frames), `ssim` at most 1."""

    mean_abs: float
    psnr: float
    ssim: float
    psnr_by_frame: tuple[float, ...]


@dataclass(frozen=True)
class AudioDifference:
    relative_l2: float
    cosine: float


@dataclass(frozen=True)
class RunComparison:
    """What could be compared, from which files, and what was left out and why."""

    sources: str
    frames: FrameDifference | None = None
    audio: AudioDifference | None = None
    latents: dict[str, float] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def rows(self) -> list[tuple[str, str, str]]:
        """(what, measure, value) for a table; what was left out stands last."""
        rows = []
        if self.frames:
            rows += [("frames", name, f"{getattr(self.frames, name):.6g}") for name in ("mean_abs", "psnr", "ssim")]
        if self.audio:
            rows += [("audio", name, f"{getattr(self.audio, name):.6g}") for name in ("relative_l2", "cosine")]
        rows += [(name, "relative_l2", f"{value:.3e}") for name, value in self.latents.items()]
        rows += [(name, "not compared", why) for name, _, why in (each.partition(": ") for each in self.left_out)]
        return rows


def compare_frames(frames: Tensor, reference: Tensor) -> FrameDifference:
    """Compare `(F, H, W, 3)` uint8 with `(F, H, W, 3)` uint8; sides of at least 11 pixels.

    PSNR is of the mean squared error of all frames. SSIM uses an 11x11 Gaussian window (sigma 1.5) inside the picture,
    per channel, and is the mean over pixels, channels and frames.
    """
    _require_equal_shapes("frames", frames, reference)
    if min(frames.shape[1:3]) < _WINDOW:
        raise Refusal(
            [Problem("compare.frames", tuple(frames.shape), f"SSIM needs sides of at least {_WINDOW} pixels")]
        )
    absolute, similarity = 0.0, 0.0
    squared = []
    for frame, other in zip(frames, reference, strict=True):  # one at a time: float64 maps of a whole clip don't fit
        a, b = frame.to(torch.float64).permute(2, 0, 1), other.to(torch.float64).permute(2, 0, 1)
        difference = a - b
        absolute += float(difference.abs().mean())
        squared.append(float(difference.square().mean()))
        similarity += _ssim(a, b)
    num_frames = len(frames)
    by_frame = tuple(map(_psnr, squared))
    return FrameDifference(absolute / num_frames, _psnr(sum(squared) / num_frames), similarity / num_frames, by_frame)


def compare_audio(waveform: Tensor, reference: Tensor) -> AudioDifference:
    """Compare two waveforms of one shape; the cosine of two silences is 1, of a silence and a sound 0."""
    _require_equal_shapes("audio", waveform, reference)
    a, b = waveform.to(torch.float64).flatten(), reference.to(torch.float64).flatten()
    norms = float(a.norm() * b.norm())
    cosine = float(a @ b) / norms if norms else float(bool(a.norm() == b.norm()))
    return AudioDifference(compare_tensors(waveform, reference), cosine)


def compare_tensors(tensor: Tensor, reference: Tensor) -> float:
    """The norm of the difference over that of the reference, in float64; infinite when only the reference is zero."""
    _require_equal_shapes("tensor", tensor, reference)
    a, b = tensor.to(torch.float64), reference.to(torch.float64)
    difference, size = float((a - b).norm()), float(b.norm())
    if size:
        return difference / size
    return 0.0 if difference == 0 else math.inf


def compare_runs(a: Path | str, b: Path | str, *, every_tensor: bool = False) -> RunComparison:
    """Compare run folders (or single .safetensors, video or .wav files); `b` is the reference.

    When both have `tensors.safetensors`, frames, sound, contexts and final latents come from there (with
    `every_tensor`, every floating-point tensor that both hold, to see where two runs part); otherwise frames and
    sound come from the videos, or where there are none the sound from `sound.wav`. Raises Refusal when a file is
    missing or unreadable, or shapes differ.
    """
    a, b = Path(a), Path(b)
    missing = [
        Problem(f"compare.{side}", str(path), "there is no such file or folder")
        for side, path in (("a", a), ("b", b))
        if not path.exists()
    ]
    if missing:
        raise Refusal(missing)
    tensors = [_file_of(path, TENSORS_NAME, "*.safetensors") for path in (a, b)]
    if tensors[0] and tensors[1]:
        return _compare_stored(tensors[0], tensors[1], every_tensor)
    videos = [_file_of(path, VIDEO_NAME, "*.mp4") for path in (a, b)]
    if videos[0] and videos[1]:
        return _compare_videos(videos[0], videos[1])
    sounds = [_file_of(path, SOUND_NAME, "*.wav") for path in (a, b)]
    if sounds[0] and sounds[1]:
        return _compare_sounds(sounds[0], sounds[1])
    problems = [
        Problem(f"compare.{side}", str(path), _nothing_to_compare(path, other))
        for side, path, video, other in (("a", a, videos[0], b), ("b", b, videos[1], a))
        if not video
    ]
    raise Refusal(problems)


def _compare_stored(a: Path, b: Path, every_tensor: bool) -> RunComparison:
    with _opened(a, "a") as left, _opened(b, "b") as right:
        names, others = set(left.keys()), set(right.keys())
        shared = sorted(name for name in names & others if every_tensor or _is_result(name))
        shapes = {name: (left.get_slice(name).get_shape(), right.get_slice(name).get_shape()) for name in shared}
        problems = [
            Problem(f"compare.{name}", MISSING, f"shapes differ: {ours} and {theirs}; compare runs of one request")
            for name, (ours, theirs) in shapes.items()
            if ours != theirs
        ]
        if not shared:
            problems = [Problem("compare.a", str(a), f"holds no tensor that '{b}' holds too")]
        if problems:
            raise Refusal(problems)
        frames = audio = None
        latents = {}
        for name in shared:
            ours, theirs = left.get_tensor(name), right.get_tensor(name)
            if name == "frames":
                frames = compare_frames(ours, theirs)
            elif name == "audio.waveform":
                audio = compare_audio(ours, theirs)
            elif ours.is_floating_point():
                latents[name] = compare_tensors(ours, theirs)
    left_out = tuple(
        f"{name}: only in {'the first' if name in names else 'the second'}"
        for name in sorted(names ^ others)
        if every_tensor or _is_result(name)
    )
    return RunComparison("tensors", frames, audio, latents, left_out)


def _compare_videos(a: Path, b: Path) -> RunComparison:
    left, right = _decoded(a, "a"), _decoded(b, "b")
    problems = [
        Problem(f"compare.{name}", f"{ours} and {theirs}", "these differ; compare runs of one request")
        for name, ours, theirs in (
            ("frames", tuple(left.frames.shape), tuple(right.frames.shape)),
            *_sound_shapes(left, right),
        )
        if ours != theirs
    ]
    if problems:
        raise Refusal(problems)
    left_out = []
    if left.fps != right.fps:
        left_out.append(f"fps: {_rate(left.fps)} and {_rate(right.fps)}; frames are compared by number, not by time")
    audio = None
    if left.waveform is not None and right.waveform is not None:
        audio = compare_audio(left.waveform, right.waveform)
    else:
        left_out.append("audio: not in both")
    frames = compare_frames(left.frames, right.frames)
    return RunComparison("videos", frames, audio, {}, (*left_out, _NO_LATENTS))


def _compare_sounds(a: Path, b: Path) -> RunComparison:
    left, right = _heard(a, "a"), _heard(b, "b")
    problems = [
        Problem(f"compare.{name}", f"{ours} and {theirs}", "these differ; compare runs of one request")
        for name, ours, theirs in _sound_shapes(left, right)
        if ours != theirs
    ]
    if problems:
        raise Refusal(problems)
    return RunComparison("sounds", audio=compare_audio(left.waveform, right.waveform), left_out=(_NO_LATENTS,))


def _sound_shapes(left: Clip | Sound, right: Clip | Sound) -> list[tuple[str, object, object]]:
    if left.waveform is None or right.waveform is None:
        return []
    return [
        ("audio", tuple(left.waveform.shape), tuple(right.waveform.shape)),
        ("audio.sample_rate", left.sample_rate, right.sample_rate),
    ]


def _is_result(name: str) -> bool:
    """Whether a tensor is one that a run is judged by, rather than a step on the way."""
    return (
        name in ("frames", "audio.waveform", "audio.mel", "upsample.video")
        or name.startswith("context.")
        or name.endswith((".final.video", ".final.audio", ".frames"))
    )


def _file_of(place: Path, name: str, pattern: str) -> Path | None:
    """`place` itself if it is such a file; in a folder the file called `name`, or else the only one of that kind."""
    if place.is_file():
        kinds = {".safetensors": TENSORS_NAME, ".wav": SOUND_NAME}
        return place if kinds.get(place.suffix, VIDEO_NAME) == name else None
    if (place / name).is_file():
        return place / name
    found = sorted(place.glob(pattern))
    return found[0] if len(found) == 1 else None


def _nothing_to_compare(path: Path, other: Path) -> str:
    if path.is_file():
        return f"is no file of a kind that '{other}' has as well; give two files or folders of one kind"
    return f"holds no {TENSORS_NAME}, {VIDEO_NAME} or {SOUND_NAME} to compare with '{other}'"


def _opened(path: Path, side: str) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise Refusal([Problem(f"compare.{side}", str(path), f"is no readable safetensors file ({error})")]) from error


def _decoded(path: Path, side: str) -> Clip:
    try:
        return read_video(path)
    except (av.FFmpegError, OSError, ValueError) as error:
        message = f"is no readable video ({getattr(error, 'strerror', None) or error}); give a run's folder or a video"
        raise Refusal([Problem(f"compare.{side}", str(path), message)]) from error


def _heard(path: Path, side: str) -> Sound:
    try:
        sound = read_sound(path)
        if sound is None:
            raise BadMedia("has no sound")
    except BadMedia as error:
        raise Refusal([Problem(f"compare.{side}", str(path), str(error))]) from error
    return sound


def _require_equal_shapes(name: str, a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise Refusal([Problem(f"compare.{name}", shapes, "shapes differ; compare runs of one request")])


def _psnr(mean_squared: float) -> float:
    return 10 * math.log10(255**2 / mean_squared) if mean_squared else math.inf


def _rate(fps: Fraction) -> str:
    return f"{fps} ({float(fps):.3f})"


def _ssim(a: Tensor, b: Tensor) -> float:
    """Mean structural similarity of two pictures `(C, H, W)` in [0, 255]."""
    steps = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    window = torch.exp(-steps.square() / (2 * _SIGMA**2))
    weights = (window / window.sum()).tolist()
    mean_a, mean_b = _blurred(a, weights), _blurred(b, weights)
    variance_a = _blurred(a * a, weights) - mean_a * mean_a
    variance_b = _blurred(b * b, weights) - mean_b * mean_b
    covariance = _blurred(a * b, weights) - mean_a * mean_b
    above = (2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)
    below = (mean_a * mean_a + mean_b * mean_b + _C1) * (variance_a + variance_b + _C2)
    return float((above / below).mean())


def _blurred(maps: Tensor, weights: Sequence[float]) -> Tensor:
    """Separable window over the last two dims, inside the picture. Shifted sums: far faster than conv2d in float64."""
    for dim in (-1, -2):
        length = maps.shape[dim] - len(weights) + 1
        total = maps.narrow(dim, 0, length) * weights[0]
        for shift, weight in enumerate(weights[1:], start=1):
            total.add_(maps.narrow(dim, shift, length), alpha=weight)
        maps = total
    return maps
