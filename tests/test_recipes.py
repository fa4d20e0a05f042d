"""Every shipped recipe composes, parses and plans; every YAML in conf/ says what it is and can be reached."""

from __future__ import annotations

import itertools
import re
import shlex
import shutil
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from ltxgen.config import compose
from ltxgen.config.recipe import parse_recipe
from ltxgen.media.mp4 import Mp4Writer
from ltxgen.media.sound import Sound, write_wav
from ltxgen.recipe.plan import make_plan

RECIPES = sorted(compose.data_folder("recipes").glob("*.yaml"))
CONF = compose.data_folder("conf")
ROOT = Path(__file__).parent.parent
CHOICES = sorted(path for path in CONF.glob("*/*.yaml"))
WHERE = {  # groups that stand inside a stage
    "guidance": "guidance@stages.base.guidance",
    "schedule": "schedule@stages.base.schedule",
    "sampler": "sampler@stages.base.sampler",
    "reuse": "reuse@stages.base.reuse",
    "stage": "+stage@stages.one_more",
}
recipes = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
choices = pytest.mark.parametrize("path", CHOICES, ids=lambda path: f"{path.parent.name}/{path.stem}")


# What a recipe can't do without, but for files of the model; of a reference, a picture stands for any video.
_CLIP = ("request.source.path=clip.mp4", "request.span=[0.3,0.8]")
INPUTS = {
    "ltx23_audio_to_video": ("request.audio.path=song.wav",),
    "ltx23_retake": _CLIP,
    "ltx23_retake_distilled": _CLIP,
    "ltx23_extend": _CLIP[:1],
    "ltx23_keyframes": ("request.images=[{path: first.png}, {path: last.png, frame: -1}]",),
    "ltx23_ic_lora": ("request.references=[{path: first.png}]",),
}


def wanted(name: str) -> list[str]:
    """The words that run a recipe."""
    return [f"+recipe={name}", *INPUTS.get(name, ())]


def tiny_model(name: str) -> str:
    """The word for the embedded model of a recipe's generation."""
    return "model=ltx2_tiny" if name.startswith("ltx2_") else "model=ltx23_tiny"


def write_inputs(folder: Path) -> None:
    """The files that recipes name in their commands."""
    for name in ("first.png", "last.png"):
        Image.new("RGB", (64, 64)).save(folder / name)
    shutil.copy(folder / "first.png", folder / "depth.mp4")  # what a file is, its content says
    write_wav(folder / "song.wav", Sound(torch.zeros(1, 2, 16000 * 6), 16000))
    with Mp4Writer(folder / "clip.mp4", Fraction(24)) as writer:
        writer.write_frames(torch.zeros(25, 64, 96, 3, dtype=torch.uint8))
        writer.write_audio(torch.zeros(2, 50000), 48000)


def test_there_are_recipes():
    assert "ltx23_two_stage" in {path.stem for path in RECIPES}


@recipes
def test_a_recipe_opens_with_its_own_command_line(path: Path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# @package _global_"
    assert re.match(rf"# ltxgen \+recipe={path.stem}( |$)", lines[1])
    assert len(compose.first_comment("recipe", path.stem)) > 20, "says in a sentence what it is"
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["name"] == path.stem


@recipes
def test_its_commands_plan(path: Path, run_ltxgen, tiny_set, tmp_path: Path):
    """The commands that a recipe's head shows are ones that it takes, given the files that they name."""
    write_inputs(tmp_path)
    shutil.copy(tiny_set.file("ic_lora"), tmp_path / "lora.safetensors")
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# ltxgen "):
            continue
        words = shlex.split(re.sub(r"\s{2,}\(.*\)$", "", line.removeprefix("# ltxgen ")))
        result = run_ltxgen("plan", *words, tiny_model(path.stem), cwd=tmp_path)
        assert result.code == 0, f"{line}\n{result.err}"


@recipes
def test_a_recipe_plans_on_the_embedded_model(path: Path, tiny_set, tmp_path, monkeypatch: pytest.MonkeyPatch):
    write_inputs(tmp_path)
    before = set(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    config = compose.compose_config([*wanted(path.stem), tiny_model(path.stem), "runtime.device=cpu"])
    plan = make_plan(parse_recipe(config))
    assert plan.problems == ()
    assert list(plan.stages) == list(config["stages"])
    assert all(artifact.place == "embedded" for artifact in plan.artifacts.values())
    assert set(tmp_path.iterdir()) == before


@recipes
def test_a_recipe_plans_at_full_size(path: Path, tiny_set, tmp_path, monkeypatch: pytest.MonkeyPatch):
    """With the published architecture and no files: shapes, LoRA and wiring fit at the recipe's own size."""
    write_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    config = compose.compose_config([*wanted(path.stem), "artifacts=synthetic", "runtime.device=cpu"])
    plan = make_plan(parse_recipe(config))
    assert plan.problems == ()
    generation = "LTX-2" if path.stem.startswith("ltx2_") else "LTX-2.3"
    assert plan.recipe.model.generation == generation
    assert plan.recipe.artifacts.architecture == {"LTX-2": "ltx2_19b", "LTX-2.3": "ltx23_22b"}[generation]


@recipes
def test_a_recipe_is_described_in_the_readme(path: Path):
    text = (path.parent / "README.md").read_text(encoding="utf-8")
    assert text.count(f"`{path.stem}`") >= 2
    assert f"ltxgen +recipe={path.stem}" in text
    still = ROOT / "docs" / "recipes" / f"{path.stem}.jpg"
    assert f"(../docs/recipes/{still.name})" in text
    assert 1000 < still.stat().st_size < 15_000


@choices
def test_a_choice_says_what_it_is(path: Path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert len(compose.first_comment(path.parent.name, path.stem)) > 10
    assert path.stem in compose.groups()[path.parent.name]


def _one_of_each_group() -> list[list[Path]]:
    """The choices dealt into as few compositions as their groups allow."""
    groups = [[path for path in CHOICES if path.parent.name == group] for group in sorted(compose.groups())]
    return [[path for path in dealt if path] for dealt in itertools.zip_longest(*groups)]


@pytest.mark.parametrize("paths", _one_of_each_group(), ids=lambda paths: "+".join(path.stem for path in paths))
def test_choices_can_be_reached(paths: list[Path]):
    words = [f"{WHERE.get(path.parent.name, path.parent.name)}={path.stem}" for path in paths]
    config = compose.compose_config(["+recipe=ltx23_two_stage", *words])
    for path in paths:
        group, text = path.parent.name, path.read_text(encoding="utf-8")
        places = {"stage": config["stages"].get("one_more"), **config["stages"]["base"], **config}
        content = {key: value for key, value in yaml.safe_load(text).items() if key != "defaults"}
        content = content.get(group, {}) if "@package _global_" in text else content
        assert content.keys() <= places.get(group, {}).keys(), path
        # Another choice of this composition (the tiny model) may set other values; a kind or name is the choice's own.
        for own in {"kind", "name"} & content.keys():
            assert places[group][own] == content[own], path
    config["stages"].pop("one_more", None)  # alone it lacks the names of other stages
    parse_recipe(config)


def test_the_groups_are_the_folders_and_the_defaults_list_names_them():
    groups = {path.name for path in CONF.iterdir() if path.is_dir()} - {"hydra"}
    assert groups == set(compose.groups()) - {"recipe"}
    defaults = yaml.safe_load((CONF / "config.yaml").read_text())["defaults"]
    named = {key for entry in defaults if isinstance(entry, dict) for key in entry if not key.startswith("override")}
    assert named == groups - {"stage", "schedule", "sampler", "guidance", "reuse"}  # those stand inside a stage
    # Each line of the list says what is chosen there.
    lines = (CONF / "config.yaml").read_text().splitlines()
    for group in named:
        (line,) = [line for line in lines if line.startswith(f"  - {group}:")]
        assert "#" in line, line


def test_hq_defaults_are_the_official_ones():
    config = compose.compose_config(["+recipe=ltx23_two_stage_hq"])
    base, refine = (config["stages"][name] for name in ("base", "refine"))
    assert (base["steps"], base["schedule"]["tokens"], base["scale"]) == (15, "latent", "1/2")
    assert base["sampler"] == refine["sampler"] == {"kind": "res_2s", "step_seed": -1, "substep_seed": 9999}
    assert (base["loras"], refine["loras"]) == ({"distilled": 0.25}, {"distilled": 0.5})
    scales = ("cfg_scale", "stg_scale", "rescale_scale", "modality_scale")
    assert [base["guidance"]["video"][scale] for scale in scales] == [3.0, 0.0, 0.45, 3.0]
    assert [base["guidance"]["audio"][scale] for scale in scales] == [7.0, 0.0, 1.0, 3.0]
    assert refine["guidance"] == {"kind": "none"}
    assert (config["request"]["width"], config["request"]["height"]) == (1920, 1088)


def test_defaults_are_the_official_ones():
    """The two-stage recipe's numbers, from the model's own documentation."""
    config = compose.compose_config(["+recipe=ltx23_two_stage"])
    guidance = config["stages"]["base"]["guidance"]
    assert (config["stages"]["base"]["steps"], config["stages"]["base"]["scale"]) == (30, "1/2")
    assert config["stages"]["refine"]["sigmas"] == [0.909375, 0.725, 0.421875, 0.0]
    assert config["stages"]["refine"]["loras"] == {"distilled": 1.0}
    assert [guidance[modality]["cfg_scale"] for modality in ("video", "audio")] == [3.0, 7.0]
    for modality in ("video", "audio"):
        assert guidance[modality]["stg_scale"] == 1.0
        assert guidance[modality]["stg_blocks"] == [28]
        assert guidance[modality]["rescale_scale"] == 0.7
        assert guidance[modality]["modality_scale"] == 3.0
    request = config["request"]
    assert (request["width"], request["height"], request["num_frames"], request["fps"]) == (1536, 1024, 121, 24)
