"""log.jsonl and TensorBoard: what is written while a run goes on, and that the run is the same without."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import ltxgen
from ltxgen.recipe import tensorboard
from ltxgen.recipe.log import JsonLines
from ltxgen.stage.denoiser import Denoiser

LATENTS_ONLY = ("~stages.decode_video", "~stages.decode_audio", "~stages.write")


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def named(found: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [event for event in found if event["event"] == name]


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def test_a_run_in_its_log(run_ltxgen, tiny_words, tmp_path: Path):
    assert run_ltxgen(*tiny_words, "output.log=true", "output.dir=out", cwd=tmp_path).code == 0
    found, made = events(tmp_path / "out"), manifest(tmp_path / "out")
    began, ended = found[0], found[-1]
    assert (began["event"], began["recipe"], began["seed"]) == ("run began", "ltx23_two_stage", 10)
    assert began["key"] == hashlib.sha256((tmp_path / "out" / "recipe.yaml").read_bytes()).hexdigest()
    assert [event["stage"] for event in named(found, "stage began")] == began["stages"] == list(made["stages"])
    assert [event["at"] for event in found] == sorted(event["at"] for event in found)
    for event in named(found, "stage ended"):
        stage = made["stages"][event["stage"]]
        assert (event["from"], event["key"], event["load_seconds"]) == ("run", stage["key"], stage["load_seconds"])
        assert event["peak_bytes"] > 0
    assert (ended["event"], ended["seconds"]) == ("run ended", made["seconds"])
    for name, stage in ended["stages"].items():  # with what was streamed
        assert stage == {key: made["stages"][name][key] for key in stage}
    for name in ("base", "refine"):
        steps = [event for event in named(found, "step") if event["stage"] == name]
        sigmas = made["stages"][name]["sigmas"]
        assert [event["sigma"] for event in steps] == pytest.approx(sigmas[:-1])
        assert [(event["number"], event["of"]) for event in steps] == [
            (number, len(sigmas) - 1) for number in range(1, len(sigmas))
        ]
        assert [len(event["passes"]) for event in steps] == made["stages"][name]["passes"]
        assert 0 < sum(event["seconds"] for event in steps) <= made["stages"][name]["seconds"]
    assert named(found, "step")[0]["passes"] == ["text", "negative", "stg", "isolated"]


def test_the_run_is_the_same_without(run_ltxgen, tiny_words, stored_run, tmp_path: Path):
    plain = tmp_path / "plain"
    assert run_ltxgen(*tiny_words, f"output.dir={plain}", cwd=tmp_path).code == 0
    logged = run_ltxgen(*tiny_words, "output.log=true", "output.dir=logged", cwd=tmp_path)
    assert logged.code == 0, logged.err
    for name in ("video.mp4", "recipe.yaml", "contact_sheet.png"):
        assert (tmp_path / "logged" / name).read_bytes() == (plain / name).read_bytes()
    keys = [[stage["key"] for stage in manifest(folder)["stages"].values()] for folder in (plain, tmp_path / "logged")]
    assert keys[0] == keys[1]
    # Run again without a log, into the same folder: the old one would pass for its own.
    assert run_ltxgen(*tiny_words, *LATENTS_ONLY, "output.dir=logged", cwd=tmp_path).code == 0
    assert sorted(path.name for path in (tmp_path / "logged").iterdir()) == ["manifest.json", "recipe.yaml"]


def test_stages_from_the_cache(run_ltxgen, tiny_words, tmp_path: Path):
    words = (*tiny_words, *LATENTS_ONLY, "cache=auto", f"cache.folder={tmp_path / 'stages'}", "output.log=true")
    for name in ("one", "two"):
        assert run_ltxgen(*words, f"output.dir={name}", cwd=tmp_path).code == 0
    one, two = events(tmp_path / "one"), events(tmp_path / "two")
    assert {event["from"] for event in named(one, "stage ended")} == {"run"}
    assert {event["from"] for event in named(two, "stage ended")} == {"cache"}
    keys = [{event["stage"]: event["key"] for event in named(found, "stage ended")} for found in (one, two)]
    assert keys[0] == keys[1]
    assert named(two, "step") == []


@pytest.mark.parametrize(
    ("error", "code", "last", "what"),
    [
        (RuntimeError("out of luck"), 1, "run failed", "RuntimeError: out of luck"),
        (KeyboardInterrupt(), 130, "run interrupted", "KeyboardInterrupt: "),
    ],
)
def test_a_failed_run_leaves_its_log(run_ltxgen, tiny_words, tmp_path: Path, monkeypatch, error, code, last, what):
    words = (*tiny_words, *LATENTS_ONLY, "output.log=true", "output.dir=out")
    called = Denoiser.__call__

    def fail(self, states, sigma, step):
        if step == 1:
            raise error
        return called(self, states, sigma, step)

    with monkeypatch.context() as patch:
        patch.setattr(Denoiser, "__call__", fail)
        assert run_ltxgen(*words, cwd=tmp_path).code == code
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["log.jsonl"]
    found = events(tmp_path / "out")
    assert [event["event"] for event in found[-3:]] == ["step", "stage failed", last]
    assert found[-1]["error"] == what
    resumed = run_ltxgen("resume", "out", cwd=tmp_path)
    assert resumed.code == 0, resumed.err
    both = events(tmp_path / "out")
    assert both[: len(found)] == found
    assert both[len(found)]["event"] == "run began"
    assert both[-1]["event"] == "run ended"


def test_a_killed_run_leaves_whole_lines(run_ltxgen, tiny_words, tmp_path: Path):
    words = (*tiny_words, *LATENTS_ONLY, "stages.base.steps=200", "output.log=true", "output.dir=out")
    environment = {**os.environ, "PYTHONPATH": str(Path(ltxgen.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen([sys.executable, "-m", "ltxgen", *words], cwd=tmp_path, env=environment)
    try:
        log, ending = tmp_path / "out" / "log.jsonl", time.monotonic() + 120
        while not (log.exists() and b'"step"' in log.read_bytes()):
            assert running.poll() is None
            assert time.monotonic() < ending
            time.sleep(0.05)
    finally:
        running.kill()
        running.wait()
    found = events(tmp_path / "out")
    assert found[0]["event"] == "run began"
    assert found[-1]["event"] == "step"
    assert found[-1]["number"] < 200


def test_a_line_that_was_cut_short_is_taken_away(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    with JsonLines(path) as log:
        log({"event": "note", "text": "猫\n"})
        assert json.loads(path.read_text(encoding="utf-8")) == {"event": "note", "text": "猫\n"}  # while it is open
    path.write_bytes(path.read_bytes() + b'{"event": "no')
    with JsonLines(path) as log:
        log({"event": "run began"})
    assert [json.loads(line)["event"] for line in path.read_text(encoding="utf-8").splitlines()] == [
        "note",
        "run began",
    ]


def test_every_job_of_a_sweep_has_its_log(run_ltxgen, tiny_words, tmp_path: Path):
    words = (*tiny_words, *LATENTS_ONLY, "output.log=true", "request.seed=1,2", "output.dir=both")
    assert run_ltxgen("-m", *words, cwd=tmp_path).code == 0
    for number in (0, 1):
        found = events(tmp_path / "both" / str(number))
        assert (found[0]["seed"], found[-1]["event"]) == (number + 1, "run ended")
        assert len(named(found, "run began")) == 1


def test_one_rank_writes_it(run_ltxgen, tiny_words, tmp_path: Path):
    words = (*tiny_words, *LATENTS_ONLY, "output.log=true", "output.dir=out", "parallel.num_processes=2")
    result = run_ltxgen(*words, cwd=tmp_path)
    assert result.code == 0, result.err
    found = events(tmp_path / "out")
    assert (len(named(found, "run began")), len(named(found, "run ended"))) == (1, 1)
    assert len(named(found, "step")) == 5


def test_from_python_only_with_a_folder(run_ltxgen, tiny_words, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    steps = []
    overrides = [*tiny_words[1:], *LATENTS_ONLY, "output.log=true"]
    with ltxgen.load("ltx23_two_stage", overrides=overrides) as pipeline:
        pipeline.run({"seed": 1}, on_step=steps.append)
        assert list(tmp_path.iterdir()) == []
        pipeline.run({"seed": 2}, on_step=steps.append, output="out")
    assert [(step.sigma, step.passes) for step in steps[:5]] == [(step.sigma, step.passes) for step in steps[5:]]
    logged = named(events(tmp_path / "out"), "step")
    assert [(event["sigma"], tuple(event["passes"])) for event in logged] == [
        (step.sigma, step.passes) for step in steps[5:]
    ]


def test_tensorboard_has_to_be_there(run_ltxgen, tiny_words, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tensorboard, "find_spec", lambda name: None)
    result = run_ltxgen(*tiny_words, "output.tensorboard=true", "output.dir=out", cwd=tmp_path)
    assert result.code == 2
    assert "output.tensorboard = True: TensorBoard is not installed: pip install tensorboard" in result.err
    assert list(tmp_path.iterdir()) == []


def test_tensorboard(run_ltxgen, tiny_words, tmp_path: Path):
    pytest.importorskip("tensorboard", reason="TensorBoard is optional")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = (*tiny_words, "output.tensorboard=true", "output.previews=1", "output.log=true", "output.dir=out")
    assert run_ltxgen(*words, cwd=tmp_path).code == 0
    board = EventAccumulator(str(tmp_path / "out" / "tensorboard")).Reload()
    steps = named(events(tmp_path / "out"), "step")
    for name in ("base", "refine"):
        own = [event for event in steps if event["stage"] == name]
        for tag, key, scale in (("sigma", "sigma", 1), ("seconds", "seconds", 1), ("peak_gib", "peak_bytes", 2**30)):
            shown = board.Scalars(f"{name}/{tag}")
            assert [scalar.step for scalar in shown] == [event["number"] for event in own]
            assert [scalar.value for scalar in shown] == pytest.approx([event[key] / scale for event in own], rel=1e-6)
        assert len(board.Images(f"{name}/preview")) == len(own)
    assert len(board.Images("contact_sheet")) == 1
    assert "tensorboard" not in yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())["output"]
