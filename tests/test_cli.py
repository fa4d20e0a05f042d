"""The commands, their exit codes, and what a user reads."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import ltxgen
from ltxgen.artifacts import hub
from ltxgen.config import compose

LATENTS_ONLY = ("~stages.decode_video", "~stages.decode_audio", "~stages.write")
RECIPE = "+recipe=ltx23_two_stage"


def child(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(ltxgen.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_as_a_process_of_its_own(tiny_words, tiny_set, offline, tmp_path: Path):
    words = (*tiny_words, *LATENTS_ONLY, "output.dir=out")
    ran = child(sys.executable, "-m", "ltxgen", *words, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["manifest.json", "recipe.yaml"]
    assert "base: done after" in ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_refusal_as_a_process_of_its_own(tiny_words, tiny_set, offline, tmp_path: Path):
    script = shutil.which("ltxgen", path=Path(sys.executable).parent)
    command = (script,) if script else (sys.executable, "-m", "ltxgen")
    ran = child(*command, *tiny_words, "request.num_frames=100", cwd=tmp_path)
    message = "ltxgen: request.num_frames = 100: must be 8k + 1; the nearest are 97 and 105\n"
    assert (ran.returncode, ran.stdout, ran.stderr) == (2, "", message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [(), ("--version",)])
def test_no_words_and_version(run_ltxgen, tmp_path, words):
    result = run_ltxgen(*words, cwd=tmp_path)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"ltxgen {ltxgen.__version__}")


def test_the_usage_names_every_command(run_ltxgen, tmp_path):
    from ltxgen.cli.commands import COMMANDS

    usage = run_ltxgen(cwd=tmp_path).out
    for command in COMMANDS:
        assert f"ltxgen {command}" in usage


def test_an_unknown_command(run_ltxgen, tmp_path):
    result = run_ltxgen("plam", RECIPE, cwd=tmp_path)
    assert result.code == 2
    assert "command = plam: must be one of run, plan, fetch, lock, doctor, ls, cp, compare, cache, " in result.err
    assert "did you mean 'plan'?" in result.err


def test_hydras_help_and_config_keep_working(run_ltxgen, tmp_path):
    shown = run_ltxgen("--help", cwd=tmp_path)
    assert shown.code == 0
    assert re.search(r"recipe: .*ltx23_two_stage", shown.out)
    assert "ltxgen is powered by Hydra" in shown.out
    job = run_ltxgen("--cfg", "job", RECIPE, "request.seed=5", "request.prompt=a, b", cwd=tmp_path)
    assert job.code == 0
    config = yaml.safe_load(job.out)
    assert (config["request"]["seed"], config["request"]["prompt"]) == (5, "a, b")
    assert next(iter(config["stages"])) == "prompt"
    prompt = run_ltxgen("--cfg", "job", "--package", "request.prompt", RECIPE, "request.prompt=a, b", cwd=tmp_path)
    assert (prompt.code, prompt.out) == (0, "a, b\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("ltxgen +recipe=ltx23_ke", ["+recipe=ltx23_keyframes"]),
        ("ltxgen +recipe=ltx23_two_stage request.se", ["request.seed="]),
        ("ltxgen plan +recipe=ltx23_two_stage stages.base.ste", ["stages.base.steps="]),
        ("ltxgen memory=s", ["memory=stream", "memory=swap"]),
        ("ltxgen doc", ["doctor"]),
        ("ltxgen doctor +recipe=ltx23_ke", ["+recipe=ltx23_keyframes"]),
    ],
)
def test_shell_completion(run_ltxgen, tmp_path, monkeypatch, line, completed):
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    result = run_ltxgen("-sc", "query=bash", cwd=tmp_path)
    assert (result.code, result.out.split()) == (0, completed)


def test_shell_completion_installs(run_ltxgen, tmp_path):
    result = run_ltxgen("-sc", "install=bash", cwd=tmp_path)
    assert (result.code, result.err) == (0, "")
    assert "complete -o nospace" in result.out


def test_showing_a_config_that_cannot_be_composed(run_ltxgen, tmp_path):
    result = run_ltxgen("--cfg", "job", "+recipe=ltx23_two_stag", cwd=tmp_path)
    assert result.code == 2
    assert "did you mean 'ltx23_two_stage'?" in result.err
    # Values may be wrong there: it is how one looks at them.
    assert run_ltxgen("--cfg", "job", RECIPE, "request.num_frames=100", cwd=tmp_path).code == 0


def test_ls(run_ltxgen, tmp_path):
    everything = run_ltxgen("ls", cwd=tmp_path).out.splitlines()
    assert everything[0].startswith("recipe: ")
    assert any(re.match(r"recipe: +ltx23_two_stage +LTX-2\.3 in two stages", line) for line in everything)
    assert any(line.split()[:1] == ["attention:"] and "sdpa" in line for line in everything)
    models = run_ltxgen("ls", "model", cwd=tmp_path)
    assert models.code == 0
    assert "ltx23_tiny" in models.out
    assert "random weights" in models.out
    attention = run_ltxgen("ls", "attention", cwd=tmp_path).out.splitlines()
    (missing,) = (position for position, line in enumerate(attention) if line.startswith("flash3 "))
    assert "unavailable here: " in attention[missing + 1]
    assert "flash_attn_interface is not installed" in attention[missing + 1] or torch.cuda.is_available()
    (present,) = (position for position, line in enumerate(attention) if line.startswith("reference "))
    assert "unavailable" not in attention[present + 1]
    wrong = run_ltxgen("ls", "modle", cwd=tmp_path)
    assert (wrong.code, wrong.out) == (2, "")
    assert "did you mean 'model'?" in wrong.err


def test_cp(run_ltxgen, tmp_path):
    assert run_ltxgen("cp", "ltx23_two_stage", "mine", cwd=tmp_path).code == 0
    text = (tmp_path / "recipes" / "mine.yaml").read_text()
    assert "# ltxgen +recipe=mine " in text
    config = yaml.safe_load(text)
    assert config["name"] == "mine"
    assert config["stages"] == yaml.safe_load(compose.recipe_files()["ltx23_two_stage"].read_text())["stages"]
    assert run_ltxgen("plan", "+recipe=mine", "model=ltx23_tiny", cwd=tmp_path).code == 0
    assert "mine" in run_ltxgen("ls", "recipe", cwd=tmp_path).out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "takes two names"),
        (("ltx23_two_stage",), "takes two names"),
        (("ltx23_two_stag", "new"), "; did you mean 'ltx23_two_stage'?"),
        (("ltx23_two_stage", "taken"), "exists already"),
        (("ltx23_two_stage", "../outside"), "goes into ./recipes"),
        (("ltx23_two_stage", "a/b"), "goes into ./recipes"),
        (("ltx23_two_stage", ""), "goes into ./recipes"),
    ],
)
def test_cp_refuses(run_ltxgen, tmp_path, words, message):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "taken.yaml").write_text("name: taken\n")
    result = run_ltxgen("cp", *words, cwd=tmp_path)
    assert result.code == 2
    assert message in result.err
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["recipes", "recipes/taken.yaml"]
    assert (tmp_path / "recipes" / "taken.yaml").read_text() == "name: taken\n"


def test_plan(run_ltxgen, tiny_words, tmp_path, monkeypatch):
    from ltxgen.recipe import parts

    monkeypatch.delattr(parts, "Loading")  # a plan loads nothing
    result = run_ltxgen("plan", *tiny_words, "request.fps=30000/1001", cwd=tmp_path)
    assert (result.code, result.err) == (0, "")
    for shown in (
        "64x64, 9 frames at 30000/1001 per second (0.30 s), seed 10",
        "cpu, float32, numerics current, attention auto, precision none, parallel auto, kernels plain, compile none",
        "4 passes a step, 8 in all",
        "1 passes a step, 3 in all; loras distilled",
        "tokens video 8",
        "embedded tiny model",
        "prompt.context",
        "spatial_upscaler",
    ):
        assert shown in result.out
    assert list(tmp_path.iterdir()) == []


def test_a_plan_with_problems_is_shown_and_refused(run_ltxgen, tiny_words, tmp_path):
    result = run_ltxgen("plan", *tiny_words, "request.height=100", "~stages.upsample", cwd=tmp_path)
    assert result.code == 2
    assert "decode_video" in result.out
    assert "ltxgen: 2 things to change:" in result.err
    assert "request.height = 100: must be a multiple of 64 in this recipe; the nearest are 64 and 128" in result.err
    assert "stages.refine = upsample.video: no earlier stage writes what it reads" in result.err


def test_a_plan_shows_every_candidate(run_ltxgen, tmp_path):
    result = run_ltxgen("plan", RECIPE, cwd=tmp_path)
    assert result.code == 2
    for name in ("22b-dev", "22b-distilled-lora-384-1.1", "20b-distilled-lora-384", "upscaler-x2-1.0", "gemma-3-12b"):
        assert name in result.out
    assert "not there" in result.out


def test_fetch(run_ltxgen, tmp_path, monkeypatch):
    asked = []

    def download(candidate, *arguments, **options):
        asked.append(candidate.label)
        raise hub.DownloadFailed("the network is down")

    monkeypatch.setattr("ltxgen.artifacts.resolver.download", download)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    result = run_ltxgen("fetch", RECIPE, cwd=tmp_path)
    assert result.code == 2
    assert result.err.count("the network is down") == 4
    assert asked == [
        "google/gemma-3-12b-it-qat-q4_0-unquantized",
        "Lightricks/LTX-2.3/ltx-2.3-22b-dev.safetensors",
        "Lightricks/LTX-2.3/ltx-2.3-spatial-upscaler-x2-1.1.safetensors",
        "Lightricks/LTX-2.3/ltx-2.3-22b-distilled-lora-384-1.1.safetensors",
    ]


def test_fetch_with_everything_here(run_ltxgen, tiny_words, tmp_path, monkeypatch):
    monkeypatch.delattr("ltxgen.artifacts.resolver.download")
    result = run_ltxgen("fetch", *tiny_words, cwd=tmp_path)
    assert (result.code, result.err) == (0, "")
    assert result.out.count("is here") == 4


def test_compare(run_ltxgen, stored_run, tmp_path):
    one, other = stored_run(), stored_run("request.seed=11")
    equal = run_ltxgen("compare", str(one), str(one), cwd=tmp_path)
    assert equal.code == 0
    rows = {tuple(line.split("│")[1:3]): line.split("│")[3].strip() for line in equal.out.splitlines() if "│ " in line}
    rows = {(what.strip(), measure.strip()): value for (what, measure), value in rows.items()}
    assert rows["frames", "mean_abs"] == "0"
    assert rows["frames", "psnr"] == "inf"
    assert rows["audio", "cosine"] == "1"
    assert rows["refine.final.video", "relative_l2"] == "0.000e+00"
    different = run_ltxgen("compare", str(one), str(other), cwd=tmp_path)
    assert different.code == 0
    assert "inf" not in different.out
    # Each has a page of its own.
    assert equal.out.splitlines()[-1] == "compare.html"
    assert different.out.splitlines()[-1] == "compare_2.html"
    videos = run_ltxgen("compare", str(one / "video.mp4"), str(other / "video.mp4"), cwd=tmp_path)
    assert videos.code == 0
    assert "ssim" in videos.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "takes two run folders"),
        (("a",), "takes two run folders"),
        (("nowhere", "nothing"), "compare.a = nowhere: there is no such file or folder"),
    ],
)
def test_compare_refuses(run_ltxgen, tmp_path, words, message):
    result = run_ltxgen("compare", *words, cwd=tmp_path)
    assert result.code == 2
    assert message in result.err


def test_a_sweep_keeps_its_jobs_apart(run_ltxgen, tiny_words, tmp_path):
    words = (*tiny_words, *LATENTS_ONLY)
    result = run_ltxgen("-m", *words, "request.seed=1,2", "output.dir=both", cwd=tmp_path)
    assert result.code == 0, result.err
    # Nothing else is left: no multirun.yaml of Hydra's.
    assert [path.name for path in tmp_path.iterdir()] == ["both"]
    manifests = sorted((tmp_path / "both").rglob("manifest.json"))
    assert [json.loads(path.read_text())["request"]["seed"] for path in manifests] == [1, 2]
    assert [path.parent.relative_to(tmp_path).as_posix() for path in manifests] == ["both/0", "both/1"]


def test_a_sweep_into_the_default_folder(run_ltxgen, tiny_words, tmp_path):
    """The jobs of one sweep stand in one folder of its time."""
    assert run_ltxgen("-m", *tiny_words, *LATENTS_ONLY, "request.seed=1,2", cwd=tmp_path).code == 0
    (folder,) = (tmp_path / "outputs" / "ltx23_two_stage").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == [".sweep", "0", "1", "index.html", "sweep.json"]


def test_a_sweep_with_a_bad_job_is_refused_before_the_first_one(run_ltxgen, tiny_words, tmp_path):
    result = run_ltxgen("-m", *tiny_words, "request.seed=1,-2", "output.dir=both", cwd=tmp_path)
    assert result.code == 2
    assert "request.seed = -2: must be between 0 and 2^63 - 1" in result.err
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_where(run_ltxgen, tiny_words, tmp_path, monkeypatch):
    from ltxgen.stage.denoise import Denoise

    monkeypatch.setattr(Denoise, "describe", None)  # an error of our own, before anything runs
    plain = run_ltxgen("plan", *tiny_words, cwd=tmp_path)
    debug = run_ltxgen("plan", "--debug", *tiny_words, cwd=tmp_path)
    assert plain.code == debug.code == 1
    assert "Traceback" not in plain.err
    assert "TypeError" in plain.err
    assert "Traceback" in debug.err
    refused = run_ltxgen("--debug", *tiny_words, "request.seed=-1", cwd=tmp_path)
    assert refused.code == 2
    assert "Traceback" in refused.err


@pytest.mark.parametrize("command", [(), ("run",)])
def test_a_run_prints_where_its_results_are(run_ltxgen, stored_run, tiny_words, tmp_path, monkeypatch, command):
    folder = stored_run()
    monkeypatch.setattr("ltxgen.recipe.launch.run_plan", lambda *arguments, **options: folder)
    result = run_ltxgen(*command, *tiny_words, cwd=tmp_path)
    assert result.out.splitlines() == [str(folder / "video.mp4"), str(folder / "contact_sheet.png")]


def test_several_problems_in_one_message(run_ltxgen, tmp_path):
    result = run_ltxgen(
        RECIPE, "model=ltx23_tinny", "request.sed=3", "request.num_frames=100", "runtime.dtype=float23", cwd=tmp_path
    )
    assert result.code == 2
    assert result.err.splitlines()[0] == "ltxgen: 4 things to change:"
    assert len(result.err.splitlines()) == 5
    for part in ("did you mean 'ltx23_tiny'?", "did you mean 'request.seed'?", "97 and 105", "did you mean 'float32'?"):
        assert part in result.err


def test_show_a_video_and_run_its_recipe(run_ltxgen, tiny_words, tmp_path):
    prompt = "a cat, \"said\" 'so' = #1 [bold]猫🐱[/]"
    words = (*tiny_words, f"request.prompt={json.dumps(prompt, ensure_ascii=False)}", "output.dir=out")
    made = run_ltxgen(*words, "output.previews=1", cwd=tmp_path)
    assert made.code == 0, made.err
    video = tmp_path / "moved.mp4"
    (tmp_path / "out" / "video.mp4").rename(video)
    previews = sorted(path.name for path in (tmp_path / "out" / "previews").iterdir())
    assert previews == [f"{name}.png" for name in ("base_001", "base_002", "refine_001", "refine_002", "refine_003")]
    shown = run_ltxgen("show", str(video), cwd=tmp_path)
    assert (shown.code, shown.err) == (0, "")
    for text in ("64x64, 9 frames at 24 per second, seed 10", "[bold]猫🐱[/]", "torch", "tiny-dev"):
        assert text in shown.out
    recipe = run_ltxgen("show", str(video), "--recipe", cwd=tmp_path)
    assert recipe.out == (tmp_path / "out" / "recipe.yaml").read_text(encoding="utf-8")
    (tmp_path / "r.yaml").write_text(recipe.out, encoding="utf-8")
    again = run_ltxgen("+recipe=r.yaml", "output.dir=out", cwd=tmp_path)  # without previews of its own
    assert again.code == 0, again.err
    assert yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())["request"]["prompt"] == prompt
    same = run_ltxgen("compare", str(video), "out/video.mp4", "--page", "same.html", cwd=tmp_path)
    assert "inf" in same.out
    assert same.out.endswith("same.html\n")
    assert "moved.mp4" in (tmp_path / "same.html").read_text()


def test_a_terminal_obeys_nothing_that_a_run_says(run_ltxgen, tmp_path):
    (tmp_path / "recipe.yaml").write_text('name: "\\e[31mred"\nrequest: {prompt: "\\e]0;title\\a"}\n')
    (tmp_path / "manifest.json").write_text('{"recipe": "\\u001b[2J", "stages": {"\\u009b1m": {"seconds": "x"}}}')
    shown = run_ltxgen("show", ".", cwd=tmp_path)
    assert shown.code == 0, shown.err
    assert "]0;title" in shown.out
    assert not {"\x1b", "\x07", "\x9b"} & set(shown.out)


@pytest.mark.parametrize("words", [(), ("a", "b"), ("--recipe",), ("a", "--recipe", "b")])
def test_show_refuses(run_ltxgen, tmp_path, words):
    result = run_ltxgen("show", *words, cwd=tmp_path)
    assert result.code == 2
    assert "takes a video or a run's folder" in result.err
