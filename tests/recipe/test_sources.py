"""Recipes that start from a sound or a clip, and the one of sound alone: runs of the embedded model."""

from __future__ import annotations

import copy
import functools
import math
import operator
import wave
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ltxgen.artifacts import load
from ltxgen.config import compose
from ltxgen.config.errors import Refusal
from ltxgen.config.recipe import parse_recipe
from ltxgen.media.mp4 import Mp4Writer
from ltxgen.media.read import read_video
from ltxgen.media.sound import Sound, read_sound, write_wav
from ltxgen.recipe.plan import make_plan

TINY = ("model=ltx23_tiny", "stages.base.steps=2", "output.tensors=true", "cache=off")
RETAKE = ("+recipe=ltx23_retake", "request.source.path=clip.mp4", "request.span=[0.1,0.3]")
EXTEND = ("+recipe=ltx23_extend", "request.source.path=clip.mp4", "request.num_frames=25")
SOUND = (
    *("+recipe=ltx23_audio_to_video", "request.height=64", "request.width=64", "request.num_frames=9"),
    *("request.audio.path=song.wav", "request.audio.start_seconds=0.25"),
)
ALONE = ("+recipe=ltx23_text_to_audio", "request.num_frames=9")
INSIDE = {"video": slice(1, 2), "audio": slice(3, 9)}  # the latents of 17 frames that the span touches


def tone(seconds: float, rate: int) -> torch.Tensor:
    """(2, n): another pitch left and right."""
    t = torch.arange(round(seconds * rate)) / rate
    return torch.stack([0.5 * torch.sin(2 * math.pi * pitch * t) for pitch in (440, 660)])


def write_clip(path: Path, num_frames: int = 17, fps: int = 24, *, sound: bool = True, size: int = 64) -> Path:
    places = torch.arange(size)
    frames = [
        torch.stack([(places[:, None] * 3 + places * 2 + 7 * f + c) % 256 for c in range(3)], -1)
        for f in range(num_frames)
    ]
    with Mp4Writer(path, Fraction(fps)) as writer:
        writer.write_frames(torch.stack(frames).to(torch.uint8))
        if sound:
            writer.write_audio(tone(num_frames / fps, 48000), 48000)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the runs start from."""
    folder = tmp_path_factory.mktemp("sources")
    write_clip(folder / "clip.mp4")
    write_clip(folder / "silent.mp4", sound=False)
    write_wav(folder / "song.wav", Sound(tone(1.0, 44100)[None], 44100))
    return folder


@pytest.fixture(scope="module")
def run(run_ltxgen, folder: Path) -> Callable[..., dict[str, torch.Tensor]]:
    """The tensors of a run with these words; each is made once."""
    made: dict[tuple[str, ...], Path] = {}

    def tensors(*words: str) -> dict[str, torch.Tensor]:
        if words not in made:
            out = folder / f"out{len(made)}"
            result = run_ltxgen(*words, *TINY, f"output.dir={out}", cwd=folder)
            assert result.code == 0, result.err
            made[words] = out
        found = load_file(made[words] / "tensors.safetensors")
        tensors.folder = made[words]  # type: ignore[attr-defined]
        return found

    return tensors


def along_time(latents: torch.Tensor) -> torch.Tensor:
    """Latents (1, C, frames, ...) by frame."""
    return latents[0].movedim(1, 0)


@pytest.mark.parametrize("regenerate", ["[video,audio]", "[video]", "[audio]"])
def test_a_retake_keeps_the_rest_bit_for_bit(run, regenerate: str):
    made = run(*RETAKE, f"request.regenerate={regenerate}")
    for modality in ("video", "audio"):
        source, final = (along_time(made[f"{name}.{modality}"]) for name in ("source", "base.final"))
        changed = [frame for frame, both in enumerate(zip(source, final, strict=True)) if not torch.equal(*both)]
        inside = INSIDE[modality] if modality in regenerate else slice(0)
        assert changed == list(range(len(source))[inside])


def test_what_is_not_regenerated_looks_like_the_encoded_clip(run):
    """All of the picture is kept: the frames are those that the source's latents decode to."""
    made = run(*RETAKE, "request.regenerate=[audio]")
    assert torch.equal(made["source.video"], made["base.final.video"])
    other = run(*RETAKE, "request.regenerate=[audio]", "request.seed=3")
    assert torch.equal(made["frames"], other["frames"])
    assert not torch.equal(made["audio.waveform"], other["audio.waveform"])


def test_kept_by_the_launch_code_and_by_the_current_one(run):
    """The current code starts what it keeps from noise, the launch code from what it is; both end with the clip's."""
    words = (*RETAKE, "request.regenerate=[video]")
    current, launch = run(*words), run(*words, "runtime.numerics=launch")
    torch.testing.assert_close(current["base.noised.audio"], current["base.noise.audio"])
    kept = along_time(launch["source.audio"]).flatten(1)[None]
    assert torch.equal(launch["base.noised.audio"], kept)
    assert torch.equal(launch["base.final.audio"], current["base.final.audio"])
    assert not torch.equal(launch["base.final.video"], current["base.final.video"])


def test_a_clip_without_sound_gets_one(run, run_ltxgen, folder: Path):
    words = ("+recipe=ltx23_retake", "request.source.path=silent.mp4", "request.span=[0.1,0.3]")
    made = run(*words)
    assert "source.audio" not in made
    assert made["base.final.audio"].shape == (1, 8, 18, 16)
    refused = run_ltxgen(*words, "model=ltx23_tiny", "request.regenerate=[video]", cwd=folder)
    assert "request.regenerate = ['video']: the clip has no sound that could be kept" in refused.err


def test_another_size_and_length(run):
    made = run(*RETAKE, "request.height=32", "request.width=96", "request.num_frames=9")
    assert made["source.video"].shape == made["base.final.video"].shape == (1, 128, 2, 1, 3)
    assert made["frames"].shape == (9, 32, 96, 3)


def test_an_extension_begins_with_the_clip(run):
    made = run(*EXTEND)
    for modality, kept in (("video", 3), ("audio", 18)):
        source, final = made[f"source.{modality}"], made[f"base.final.{modality}"]
        assert source.shape[2] == kept < final.shape[2]
        assert torch.equal(final[:, :, :kept], source)
    assert made["frames"].shape == (25, 64, 64, 3)


def test_the_distilled_retake_takes_8_steps_of_one_pass(run_ltxgen, folder: Path):
    words = ("+recipe=ltx23_retake_distilled", *RETAKE[1:], *TINY[:1], *TINY[2:], f"output.dir={folder / 'distilled'}")
    result = run_ltxgen(*words, cwd=folder)
    assert result.code == 0, result.err
    made = load_file(folder / "distilled" / "tensors.safetensors")
    assert len([name for name in made if name.endswith(".x0.video")]) == 8
    assert "context.video.negative" not in made
    assert torch.equal(made["base.final.video"][:, :, 0], made["source.video"][:, :, 0])


def test_a_given_sound_stays_as_given(run):
    made = run(*SOUND)
    sound = read_sound(Path(run.folder.parent / "song.wav"), 0.25, 9 / 24)
    assert sound is not None
    assert torch.equal(made["audio.waveform"], sound.waveform)
    for stage in ("base", "refine"):
        assert torch.equal(made[f"{stage}.final.audio"], made["source.audio"])
    clip = read_video(run.folder / "video.mp4")
    assert clip.sample_rate == 44100
    assert clip.waveform is not None
    error = clip.waveform[:, 2048:] - sound.waveform[0, :, 2048 : clip.waveform.shape[1]]
    assert error.norm() < 0.05 * sound.waveform.norm()  # of AAC


def test_a_given_sound_is_heard(run, folder: Path):
    """Another sound gives another video from the same noise; the prompt's negative context reaches video alone."""
    made = run(*SOUND)
    write_wav(folder / "other.wav", Sound(tone(1.0, 44100)[None].flip(1) * 0.3, 44100))
    other = run(*(word.replace("song", "other") for word in SOUND))
    assert torch.equal(made["base.noise.video"], other["base.noise.video"])
    assert not torch.equal(made["base.final.video"], other["base.final.video"])
    same = [made[f"base.call000.forward{number}.audio"] for number in range(4)]
    assert torch.equal(same[0], made["base.noised.audio"])  # at noise level 0 a token is what it is


def test_sound_alone_never_reads_weights_of_video(run, monkeypatch: pytest.MonkeyPatch):
    read: list[str] = []
    original = load._reader

    def noting(source, key, device, dtype):
        read.append(key)
        return original(source, key, device, dtype)

    monkeypatch.setattr(load, "_reader", noting)
    made = run(*ALONE)
    assert made["base.final.audio"].shape == (1, 8, 9, 16)
    assert not [name for name in made if "video" in name]
    transformer = [key for key in read if key.startswith("model.diffusion_model.")]
    assert len(transformer) > 50
    assert not [key for key in transformer if "audio" not in key or "audio_to_video" in key or "video_to_audio" in key]
    assert not [key for key in read if key.startswith("vae.") or "video" in key]


def test_sound_alone_is_written_as_wav(run):
    made = run(*ALONE)
    assert {file.name for file in run.folder.iterdir()} == {
        *("sound.wav", "recipe.yaml", "manifest.json", "tensors.safetensors")
    }
    with wave.open(str(run.folder / "sound.wav"), "rb") as file:
        written = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2).T
        assert file.getframerate() == 48000
    waveform = made["audio.waveform"][0].numpy()
    assert np.abs(written / 32767 - waveform.clip(-1, 1)).max() < 1 / 32767


SOUNDS, RETAKES, EXTENSIONS, ALONES = SOUND[0], RETAKE[0], EXTEND[0], ALONE[0]
REFUSED = [
    (SOUNDS, {"audio.path": None}, "request.audio.path: is missing"),
    (SOUNDS, {"audio.path": "none.wav"}, "request.audio.path = none.wav: can't be read (No such file"),
    (SOUNDS, {"audio.path": "silent.mp4"}, "request.audio.path = silent.mp4: has no sound"),
    (SOUNDS, {"num_frames": 25}, "gives 0.75 s from 0.25 s on, and the video lasts 1.04 s"),
    (SOUNDS, {"audio.duration_seconds": 0.1}, "gives 0.10 s from 0.25 s on for 0.1 s"),
    (SOUNDS, {"audio.start_seconds": -1}, "request.audio.start_seconds = -1: must be at least 0"),
    (RETAKES, {"source.path": None}, "request.source.path: is missing"),
    (RETAKES, {"source.path": "none.mp4"}, "request.source.path = none.mp4: can't be read (No such file"),
    (RETAKES, {"source.path": "song.wav"}, "request.source.path = song.wav: has no picture"),
    (RETAKES, {"source.path": "long.mp4"}, "request.num_frames = null: stands for the 20 frames of 'long.mp4', and "
     "must be 8k + 1; request.num_frames=17 takes the first 17"),
    (RETAKES, {"span": None}, "request.span: is missing; it must be [start, end] in seconds, within the 0.708 s"),
    (RETAKES, {"span": [0.6, 0.3]}, "request.span = [0.6, 0.3]: must be [start, end]"),
    (RETAKES, {"span": [0.5, 1.5]}, "request.span = [0.5, 1.5]: must be [start, end]"),
    (RETAKES, {"span": [0.5]}, "request.span = [0.5]: must be [start, end]"),
    (RETAKES, {"regenerate": []}, "request.regenerate = []: must name what is made anew"),
    (RETAKES, {"regenerate": ["picture"]}, "request.regenerate[0] = picture: must be one of video, audio"),
    (RETAKES, {"fps": 25}, "request.fps = 25: must be the clip's own 24"),
    (RETAKES, {"num_frames": 33}, "request.num_frames = 33: is more than the clip's 17"),
    (RETAKES, {"height": 48}, "request.height = 48: must be a multiple of 32"),
    (RETAKES, {"audio.path": "song.wav"}, "request.audio.path = song.wav: no stage of this recipe takes it"),
    (RETAKES, {"images": [{"path": "a.png"}]}, "no stage of this recipe takes it"),
    (EXTENSIONS, {"num_frames": 17}, "request.num_frames = 17: must be more than the 17 frames of the clip"),
    (EXTENSIONS, {"stages.source.num_frames": 14}, "stages.source.num_frames=9 takes the first 9"),
    (EXTENSIONS, {"stages.source.num_frames": 41, "num_frames": 49}, "num_frames = 41: must be at most 17, the frames"),
    (EXTENSIONS, {"span": [0.1, 0.2]}, "request.span = [0.1, 0.2]: no stage of this recipe takes it"),
    (EXTENSIONS, {"stages.source.tiling.spatial_overlap_px": 32}, "stages.source.tiling: "),
    (ALONES, {"source.path": "clip.mp4"}, "request.source.path = clip.mp4: no stage of this recipe takes it"),
    (ALONES, {"stages.base.modalities": ["video"]}, "modalities = ['video']: must be [video, audio] or [audio]"),
    (ALONES, {"stages.base.modalities": ["video", "audio"]}, "prompt.context: holds no prompt for video"),
]  # fmt: skip


@pytest.fixture(scope="module")
def configs(tiny_set, offline, folder: Path) -> dict[str, dict[str, Any]]:
    """Composed configs that can run, by recipe."""
    write_clip(folder / "long.mp4", num_frames=20)
    return {words[0]: compose.compose_config([*words, *TINY[:2]]) for words in (SOUND, RETAKE, EXTEND, ALONE)}


@pytest.mark.parametrize(("recipe", "changes", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_refused_before_anything_loads(
    configs, folder, monkeypatch, recipe: str, changes: dict[str, Any], message: str
):
    monkeypatch.chdir(folder)
    config = copy.deepcopy(configs[recipe])
    for path, value in changes.items():
        *parents, key = (path if path.startswith("stages.") else f"request.{path}").split(".")
        functools.reduce(operator.getitem, parents, config)[key] = value
    with pytest.raises(Refusal) as caught:
        make_plan(parse_recipe(config)).require()
    assert message in str(caught.value)


@pytest.mark.parametrize("recipe", [SOUNDS, RETAKES, EXTENSIONS, ALONES])
def test_nothing_is_refused_of_what_was_changed_there(configs, folder, monkeypatch, recipe: str):
    monkeypatch.chdir(folder)
    make_plan(parse_recipe(configs[recipe])).require()
