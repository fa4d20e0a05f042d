"""Locked recipes: the same run in another folder, files found by content, and what is told when it differs."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from ltxgen.artifacts.hashing import sha256_of
from ltxgen.artifacts.tiny import FILES
from ltxgen.media.mp4 import Mp4Writer


@pytest.fixture(scope="module")
def file_words(tiny_set, tmp_path_factory) -> tuple[list[str], Path]:
    """Words that give the embedded model's files by path, as a user's own, and the folder that they lie in."""
    folder = tmp_path_factory.mktemp("own") / "weights"
    shutil.copytree(tiny_set.folder, folder)
    names = ("checkpoint", "distilled_lora", "spatial_upscaler", "text_encoder")
    paths = [f"artifacts.{name}.path={folder / FILES[name]}" for name in names]
    return ["artifacts.source=files", *paths], folder


@pytest.fixture(scope="module")
def run_of_files(stored_run, file_words) -> Path:
    return stored_run(*file_words[0])


def test_a_recipe_names_files_by_content_and_nothing_of_the_machine(run_of_files, file_words):
    text = (run_of_files / "recipe.yaml").read_text()
    assert str(file_words[1]) not in text
    assert str(Path.home()) not in text
    checkpoint = yaml.safe_load(text)["artifacts"]["checkpoint"]
    path = file_words[1] / FILES["checkpoint"]
    assert checkpoint == {"path": None, "candidates": [], "file": path.name, "sha256": sha256_of(path)}


def test_a_copied_folder_replays_bit_equal_elsewhere(run_ltxgen, run_of_files, tmp_path):
    copied = shutil.copytree(run_of_files, tmp_path / "copied")
    result = run_ltxgen("replay", "copied", "--check", cwd=tmp_path)
    assert result.code == 0, result.err
    assert result.out.startswith("bit-equal: picture, sound, ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copied"], "a check leaves nothing"
    assert copied == tmp_path / "copied"


def test_a_replay_without_a_check_is_a_run(run_ltxgen, stored_run, tmp_path):
    result = run_ltxgen("replay", str(stored_run()), "output.dir=again", cwd=tmp_path)
    assert (result.code, result.out.split()) == (0, ["again/video.mp4", "again/contact_sheet.png"])


def test_a_difference_is_told_with_its_reason(run_ltxgen, stored_run, tmp_path):
    folder = shutil.copytree(stored_run(), tmp_path / "run")
    tensors = load_file(folder / "tensors.safetensors")
    tensors["base.final.video"][..., 0] += 1
    save_file(tensors, folder / "tensors.safetensors")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["versions"]["torch"] = "1.0"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    result = run_ltxgen("replay", "run", "--check", cwd=tmp_path)
    lines = result.out.splitlines()
    assert (result.code, lines[0]) == (1, "not bit-equal")
    assert any(line.startswith("base.final.video relative_l2: ") for line in lines)
    assert any(line.startswith("versions.torch: was 1.0, is ") for line in lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "replay: takes one folder of a run"),
        (("nothing",), "replay = nothing: no such folder"),
        ((".",), "replay = .: holds no recipe.yaml; give the folder of a run that ended"),
    ],
)
def test_replay_refuses(run_ltxgen, tmp_path, words, message):
    result = run_ltxgen("replay", *words, cwd=tmp_path)
    assert result.code == 2
    assert message in result.err


def test_other_content_under_a_pinned_name_is_refused(run_ltxgen, run_of_files, file_words, tmp_path):
    other = tmp_path / "other.safetensors"
    tensors = load_file(file_words[1] / FILES["spatial_upscaler"])
    save_file(tensors, other, {"config": "{}"})
    words = (f"+recipe={run_of_files / 'recipe.yaml'}", f"artifacts.spatial_upscaler.path={other}")
    result = run_ltxgen("plan", *words, cwd=tmp_path)
    assert result.code == 2
    assert f"{other}: has sha256" in result.err
    assert "or set artifacts.spatial_upscaler.sha256=null to run with this one" in result.err


def test_a_pinned_file_that_is_nowhere_is_asked_for(run_ltxgen, run_of_files, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text((run_of_files / "recipe.yaml").read_text().replace("sha256: ", "sha256: 0000", 1)[:])
    text = recipe.read_text()
    pin = yaml.safe_load(text)["artifacts"]["checkpoint"]["sha256"]
    recipe.write_text(text.replace(pin, pin[:64]))
    result = run_ltxgen("plan", f"+recipe={recipe}", cwd=tmp_path)
    assert result.code == 2
    assert f"artifacts.checkpoint.path: must be {FILES['checkpoint']} with sha256 {pin[:64]}" in result.err


def test_lock_pins_without_running(run_ltxgen, tiny_words, file_words, tmp_path):
    result = run_ltxgen("lock", *tiny_words, *file_words[0], cwd=tmp_path)
    assert (result.code, result.err) == (0, "")
    (path,) = tmp_path.iterdir()
    assert path.name == "ltx23_two_stage.lock.yaml"
    locked = yaml.safe_load(path.read_text())
    assert locked["artifacts"]["text_encoder"]["sha256"] == sha256_of(file_words[1] / FILES["text_encoder"])
    assert run_ltxgen("plan", f"+recipe={path}", cwd=tmp_path).code == 0


@pytest.fixture
def started_from(tmp_path) -> Path:
    """A folder with a clip, a picture and rows of requests."""
    folder = tmp_path / "project"
    folder.mkdir()
    Image.radial_gradient("L").save(folder / "a picture, 中.png")
    pixels = torch.arange(9 * 64 * 64 * 3).reshape(9, 64, 64, 3) // 64 % 256
    with Mp4Writer(folder / "clip.mp4", Fraction(24)) as writer:
        writer.write_frames(pixels.to(torch.uint8))
        writer.write_audio(torch.sin(torch.arange(18000) / 30).expand(2, -1), 48000)
    row = {"prompt": 'a "kite" = ${x}, # 中', "images": [{"path": "a picture, 中.png"}], "seed": 5, "num_frames": 9}
    (folder / "rows.jsonl").write_text(json.dumps(row))
    return folder


@pytest.mark.parametrize(
    ("words", "compared"),
    [
        (("+recipe=ltx23_text_to_audio", "request.num_frames=9", "stages.base.steps=2"), "sound"),
        (
            ("+recipe=ltx23_retake", "request.source.path=clip.mp4", "request.span=[0.1,0.3]", "stages.base.steps=2"),
            "picture, sound",
        ),
        (
            (
                *("+recipe=ltx23_two_stage", "requests=rows.jsonl", "request.height=64", "request.width=64"),
                "stages.base.steps=2",
            ),
            "picture, sound",
        ),
    ],
    ids=["sound alone", "a clip", "a row of requests with a picture"],
)
def test_a_run_replays_where_nothing_of_its_project_is(run_ltxgen, started_from, tmp_path, words, compared):
    """Without tensors, from what people keep: the files that a run leaves."""
    result = run_ltxgen(*words, "model=ltx23_tiny", "output.dir=out", cwd=started_from)
    assert result.code == 0, result.err
    made = started_from / "out"
    elsewhere = shutil.copytree(made / "0" if (made / "0").exists() else made, tmp_path / "else" / "where")
    shutil.rmtree(started_from)
    replayed = run_ltxgen("replay", "where", "--check", cwd=elsewhere.parent)
    assert (replayed.code, replayed.out) == (0, f"bit-equal: {compared}\n"), replayed.out + replayed.err
