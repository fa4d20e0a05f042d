"""Runs that are killed at chosen moments and continued: equal results, nothing half-written, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from children import die, ended, killed_at_call, started, was_killed
from safetensors.torch import load_file

from ltxgen.artifacts.cache_folder import cache_folder
from ltxgen.config.errors import Refusal
from ltxgen.recipe import resume as resume_module
from ltxgen.recipe import run as run_module
from ltxgen.recipe.resume import forget_runs, interrupted, resumable, run_state
from ltxgen.recipe.run import whole_folder
from ltxgen.recipe.store import Store
from ltxgen.stage.denoiser import Denoiser
from ltxgen.stage.upsample import Upsample

WORDS = ("stages.base.steps=4", "stages.base.checkpoint_every=1", "stages.refine.checkpoint_every=2")
FILES = ["contact_sheet.png", "manifest.json", "recipe.yaml", "video.mp4"]


@pytest.fixture(scope="module")
def undisturbed(run_ltxgen, tiny_words, tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed") / "out"
    result = run_ltxgen(*tiny_words, *WORDS, f"output.dir={folder}", cwd=folder.parent)
    assert result.code == 0, result.err
    return results(folder)


def results(folder: Path) -> dict[str, Any]:
    assert sorted(path.name for path in folder.iterdir()) == FILES
    stages = json.loads((folder / "manifest.json").read_text())["stages"]
    files = {name: (folder / name).read_bytes() for name in ("contact_sheet.png", "video.mp4")}
    return {**files, "keys": {name: stage["key"] for name, stage in stages.items()}}


MOMENTS = {
    "before the first step": (Denoiser, "__call__", 1),
    "in the third step": (Denoiser, "__call__", 3),
    "between stages": (Upsample, "run", 1),
    "in the second stage of steps": (Denoiser, "__call__", 7),
    "while an output is stored": (os, "replace", 3),
    "while the files are moved": (Path, "replace", 2),
    "when all is moved": (shutil, "rmtree", 2),
}


@pytest.mark.parametrize(
    ("moment", "mode"),
    [*((moment, "off") for moment in MOMENTS), ("in the third step", "auto"), ("while an output is stored", "auto")],
)
def test_a_killed_run_goes_on(run_ltxgen, tiny_words, tmp_path, undisturbed, moment, mode):
    output = tmp_path / "out"
    words = (*tiny_words, *WORDS, f"cache={mode}", f"cache.folder={tmp_path / 'cache'}", "output.dir=out")
    with killed_at_call(*MOMENTS[moment]):
        assert was_killed(lambda: run_ltxgen(*words, cwd=tmp_path))
    visible = [path for path in output.iterdir() if not path.name.startswith(".")]
    assert "manifest.json" not in {path.name for path in visible} or moment == "when all is moved"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    result = run_ltxgen("resume", str(output), cwd=elsewhere)
    assert result.code == 0, result.err
    assert results(output) == undisturbed
    assert result.out.splitlines() == [str(output / "video.mp4"), str(output / "contact_sheet.png")]
    assert not run_state(output).exists()
    stages = json.loads((output / "manifest.json").read_text())["stages"]
    if moment == "in the third step":
        assert stages["prompt"]["from"] == "cache"
        assert stages["base"]["resumed after step"] == 2
    if moment == "in the second stage of steps":
        assert [stages[name]["from"] for name in ("base", "upsample", "refine")] == ["cache", "cache", "run"]
        assert stages["refine"]["resumed after step"] == 2


@pytest.mark.parametrize(
    "earlier",
    [
        ("stages.base.guidance.audio.skip_step=1",),
        ("reuse@stages.base.reuse=interval", "stages.base.reuse.start=0", "stages.base.reuse.end=1"),
    ],
    ids=["skip_step", "interval"],
)
def test_latents_after_a_kill_are_the_same_bit_for_bit(run_ltxgen, tiny_words, tmp_path, earlier):
    """Also the last bit, and before a step that depends on earlier predictions."""
    less = ("~stages.decode_video", "~stages.decode_audio", "~stages.write", *earlier)
    whole, store = {}, tmp_path / "cache"
    for kind in ("whole", "killed"):
        words = (*tiny_words, *WORDS, *less, "cache=auto", f"cache.folder={store / kind}", f"output.dir={kind}")
        if kind == "killed":
            with killed_at_call(Denoiser, "__call__", 4):
                assert was_killed(partial(run_ltxgen, *words, cwd=tmp_path))
            words = ("resume", "killed")
        assert run_ltxgen(*words, cwd=tmp_path).code == 0
        entries = {entry.facts()["stage"]: entry for entry in Store(store / kind).entries()}
        wanted = {"prompt", "base_images", "refine_images", "base", "upsample", "refine"}
        assert set(entries) == wanted  # no steps are left
        whole[kind] = {name: (entry.key, load_file(entry.path)) for name, entry in entries.items()}
    for name, (key, tensors) in whole["whole"].items():
        other_key, others = whole["killed"][name]
        assert (key, tensors.keys()) == (other_key, others.keys())
        assert all(torch.equal(tensors[each], others[each]) for each in tensors), name


def test_an_interrupted_run_leaves_nothing_and_goes_on(run_ltxgen, tiny_words, tmp_path, monkeypatch, undisturbed):
    """Ctrl-C leaves not even the folder, and the run can be resumed into it all the same."""
    with monkeypatch.context() as patch:

        def interrupt(*arguments: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(Upsample, "run", interrupt)
        assert run_ltxgen(*tiny_words, *WORDS, "output.dir=out", cwd=tmp_path).code == 130
    assert list(tmp_path.iterdir()) == []
    result = run_ltxgen("resume", "out", cwd=tmp_path)
    assert result.code == 0, result.err
    assert results(tmp_path / "out") == undisturbed
    stages = json.loads((tmp_path / "out" / "manifest.json").read_text())["stages"]
    reused = [name for name, stage in stages.items() if stage["from"] == "cache" and "images" not in name]
    assert reused == ["prompt", "base"]


def test_the_same_command_does_not_go_on_with_the_cache_off(run_ltxgen, tiny_words, tmp_path, monkeypatch):
    words = (*tiny_words, "~stages.decode_video", "~stages.decode_audio", "~stages.write", "output.dir=out")
    with killed_at_call(Upsample, "run", 1):
        assert was_killed(lambda: run_ltxgen(*words, cwd=tmp_path))
    assert run_ltxgen(*words, cwd=tmp_path).code == 0
    stages = json.loads((tmp_path / "out" / "manifest.json").read_text())["stages"]
    assert {stage["from"] for stage in stages.values()} == {"run"}


def test_what_can_not_be_resumed(run_ltxgen, tiny_words, tmp_path, stored_run):
    finished = run_ltxgen("resume", str(stored_run()), cwd=tmp_path)
    assert (finished.code, finished.out.splitlines()[0]) == (0, str(stored_run() / "video.mp4"))
    nothing = run_ltxgen("resume", "nowhere", cwd=tmp_path)
    assert nothing.code == 2
    assert "no run into this folder was interrupted" in nothing.err
    assert run_ltxgen("resume", cwd=tmp_path).code == 2
    with resumable(tmp_path / "busy", {"output": {}}, print):
        busy = run_ltxgen("resume", "busy", cwd=tmp_path)
        assert (busy.code, "is still being written" in busy.err) == (2, True)
        again = run_ltxgen(*tiny_words, "output.dir=busy", cwd=tmp_path)
        assert (again.code, "another run is writing there" in again.err) == (2, True)


@pytest.mark.parametrize("text", ["", "nope", "[]", "{}", '{"stages": 3}', "[" * 100_000], ids=range(6))
def test_a_manifest_of_no_run(run_ltxgen, tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    result = run_ltxgen("resume", str(tmp_path), cwd=tmp_path)
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        f"ltxgen: resume = {tmp_path}: its manifest.json is not that of a run, a JSON mapping with `stages`; "
        f"give another folder, or make the run again with `ltxgen replay {tmp_path}`\n"
    )


@pytest.mark.parametrize("text", ["", "nope", "[]", "{}", '{"config": 3, "started_in": "/"}'], ids=range(5))
def test_a_broken_record_of_what_was_interrupted(run_ltxgen, tmp_path, monkeypatch, text):
    monkeypatch.setenv("LTXGEN_CACHE", str(tmp_path / "cache"))
    record = run_state(tmp_path) / "config.json"
    record.parent.mkdir(parents=True)
    record.write_text(text)
    result = run_ltxgen("resume", str(tmp_path), cwd=tmp_path)
    assert (result.code, result.out) == (2, "")
    told = f"its record, {record}, is broken; start the run again with output.dir={tmp_path}"
    assert result.err == f"ltxgen: resume = {tmp_path}: {told}\n"


def fail(block: AbstractContextManager[Any], work: Callable[[], Any] = lambda: None) -> None:
    """An error in a `with` block, after some work."""

    def failing() -> None:
        with block:
            work()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        failing()


def test_what_is_kept_of_a_run(tmp_path, monkeypatch):
    monkeypatch.setenv("LTXGEN_CACHE", str(tmp_path / "cache"))
    output = tmp_path / "out"
    with pytest.raises(Refusal, match="no run into this folder"):
        interrupted(output)
    stages = run_state(output) / "stages"
    fail(resumable(output, {"name": "x"}, print), stages.mkdir)
    assert interrupted(output).config == {"name": "x"}
    fail(resumable(output, {"name": "x"}, print, continues=True))
    assert stages.exists()
    with resumable(output, {"name": "y"}, print):
        assert not (run_state(output) / "stages").exists()
        assert forget_runs() == 0  # it is going on
    assert not run_state(output).exists()


def test_runs_that_are_not_resumed_are_forgotten(tmp_path, monkeypatch):
    monkeypatch.setenv("LTXGEN_CACHE", str(tmp_path / "cache"))
    for name in ("old", "new"):
        fail(resumable(tmp_path / name, {}, print))
    long_ago = time.time() - resume_module.KEPT_SECONDS - 60
    os.utime(run_state(tmp_path / "old"), (long_ago, long_ago))
    with resumable(tmp_path / "other", {}, print):
        pass
    assert (run_state(tmp_path / "old").exists(), run_state(tmp_path / "new").exists()) == (False, True)
    assert forget_runs() == 1


def test_runs_begin_and_end_while_another_process_forgets_what_it_can(tmp_path, monkeypatch):
    monkeypatch.setenv("LTXGEN_CACHE", str(tmp_path / "cache"))
    state = run_state(tmp_path / "out")

    def forget() -> None:
        while not (tmp_path / "stop").exists():
            forget_runs()

    child = started(forget)
    said: list[str] = []
    try:
        for _ in range(100):
            with resumable(tmp_path / "out", {}, said.append):
                assert (state / "config.json").exists()
    finally:
        (tmp_path / "stop").touch()
        code = ended(child)
    assert (code, said) == (0, [])
    assert list(state.parent.iterdir()) == []


def test_a_cache_folder_that_can_not_be_written_only_ends_the_resuming(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LTXGEN_CACHE", str(tmp_path / "file"))
    said: list[str] = []
    with resumable(tmp_path / "out", {}, said.append):
        pass
    assert len(said) == 1
    assert "can't be resumed" in said[0]
    assert not cache_folder().is_dir()


def test_what_a_killed_run_left_goes_with_the_next_one(tmp_path):
    def killed() -> None:
        with whole_folder(tmp_path) as folder:
            (folder / "video.mp4").write_text("half")
            die()

    assert was_killed(killed)
    (left,) = tmp_path.iterdir()
    fresh = tmp_path / f"{run_module.PARTIAL}starting"
    fresh.mkdir()  # of a run that has it, but not its lock yet
    with whole_folder(tmp_path) as living, whole_folder(tmp_path):
        assert living.exists()  # another one that is going on
        assert not left.exists()
    assert {path.name for path in tmp_path.iterdir()} == {fresh.name}


def test_the_manifest_is_moved_last(tmp_path, monkeypatch):
    (tmp_path / "manifest.json").write_text("an earlier run's")
    replace = Path.replace

    def moved(path: Path, target: Path) -> Path:
        assert not (tmp_path / "manifest.json").exists()
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", moved)
    with whole_folder(tmp_path) as folder:
        for name in ("contact_sheet.png", "manifest.json", "recipe.yaml", "video.mp4"):
            (folder / name).write_text(name)
    assert (tmp_path / "manifest.json").read_text() == "manifest.json"
