"""Runs from Python: the same as from the command line, with weights that stay."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ltxgen
from ltxgen.config.errors import Refusal
from ltxgen.media.read import read_video

SMALL = {"height": 64, "width": 64, "num_frames": 9}
OVERRIDES = ["model=ltx23_tiny", "stages.base.steps=2", "cache=off"]


@pytest.fixture(scope="module")
def pipeline(tiny_set, offline):
    with ltxgen.load("ltx23_two_stage", overrides=OVERRIDES) as loaded:
        yield loaded


def test_import_is_light():
    code = "import ltxgen, sys; assert not {'torch', 'hydra'} & set(sys.modules); ltxgen.load"
    path = str(Path(ltxgen.__file__).parent.parent)
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": path}, timeout=120)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = ltxgen.lode


def test_a_run_is_that_of_the_command_line(pipeline, stored_run):
    folder = stored_run()
    result = pipeline.run(SMALL)
    tensors = load_file(folder / "tensors.safetensors")
    assert torch.equal(result.frames, tensors["frames"])
    assert (result.frames.dtype, tuple(result.frames.shape)) == (torch.uint8, (9, 64, 64, 3))
    assert torch.equal(result.waveform, tensors["audio.waveform"][0])
    assert result.sample_rate == 48000
    assert set(result.latents) == {"base.video", "base.audio", "upsample.video", "refine.video", "refine.audio"}
    assert torch.equal(result.latents["refine.video"], tensors["refine.final.video"])
    assert result.folder is None
    theirs = json.loads((folder / "manifest.json").read_text())
    for key in ("recipe", "runtime", "request", "artifacts"):
        assert result.manifest[key] == theirs[key]
    assert list(result.manifest["stages"]) == list(theirs["stages"])


def test_weights_stay_loaded(pipeline, stored_run):
    first = pipeline.run(SMALL)
    other = pipeline.run({**SMALL, "seed": 11})
    again = pipeline.run(SMALL)
    assert set(pipeline.loads.values()) == {1}
    assert torch.equal(first.frames, again.frames)
    assert torch.equal(other.frames, load_file(stored_run("request.seed=11") / "tensors.safetensors")["frames"])
    assert sum(stage["load_seconds"] for stage in again.manifest["stages"].values()) < 1


def test_written_results(pipeline, tmp_path: Path):
    result = pipeline.run(SMALL, output=tmp_path / "out")
    assert result.folder == tmp_path / "out"
    assert sorted(path.name for path in result.folder.iterdir()) == [
        "contact_sheet.png",
        "manifest.json",
        "recipe.yaml",
        "video.mp4",
    ]
    assert read_video(result.folder / "video.mp4").frames.shape == tuple(result.frames.shape)
    assert torch.equal(result.frames, pipeline.run(SMALL).frames)


def test_each_step_is_told(pipeline):
    steps = []
    result = pipeline.run(SMALL, on_step=steps.append)
    assert [(step.stage, step.number, step.num_steps) for step in steps] == [
        *(("base", number, 2) for number in range(2)),
        *(("refine", number, 3) for number in range(3)),
    ]
    last = steps[-1]
    assert torch.equal(last.latents.video, result.latents["refine.video"])
    assert torch.equal(last.latents.audio, result.latents["refine.audio"])
    # The last step goes to what the model expected, but for rounding.
    torch.testing.assert_close(last.denoised.video, last.latents.video)
    assert steps[0].denoised.video.shape == result.latents["base.video"].shape
    assert not torch.equal(steps[0].denoised.video, steps[0].latents.video)


def test_results_can_be_trained_on(pipeline):
    latents = pipeline.run(SMALL).latents["refine.video"]
    weight = torch.ones(1, requires_grad=True)
    (latents * weight).sum().backward()
    assert weight.grad is not None


def test_what_is_refused(pipeline):
    with pytest.raises(Refusal, match=r"request.num_frames = 100: must be 8k \+ 1"):
        pipeline.run({"num_frames": 100})
    with pytest.raises(Refusal, match="did you mean 'seed'"):
        pipeline.plan({"sed": 1})
    assert "request.height" in str(pipeline.plan({"height": 100}).problems[0])
    with pytest.raises(Refusal, match="did you mean 'ltx23_two_stage'"):
        ltxgen.load("ltx23_two_stag")
    with pytest.raises(Refusal, match=r"parallel\.num_processes = 2: runs from Python are one process each"):
        ltxgen.load("ltx23_two_stage", overrides=[*OVERRIDES, "parallel.num_processes=2"])


def test_after_an_error_it_goes_on(tiny_set, offline):
    def stop(step):
        raise KeyboardInterrupt

    with ltxgen.load("ltx23_two_stage", overrides=[*OVERRIDES, "~stages.write"]) as pipeline:
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(SMALL, on_step=stop)
        assert pipeline.run(SMALL).frames is None, "nobody reads the stream of frames"


def test_the_example_of_the_docs(tiny_set, offline, tmp_path: Path, monkeypatch):
    page = (Path(__file__).parents[1] / "docs" / "python.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "docs/python.md", "exec"), {})
    assert (tmp_path / "outputs" / "lighthouse" / "video.mp4").exists()
