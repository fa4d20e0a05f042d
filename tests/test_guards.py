"""Wrong pairs of recipe, files and request are refused in the plan, before any weight is read, with the way out."""

from __future__ import annotations

import copy
import functools
import json
import operator
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from compatibility import small_config
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_recipes import RECIPES, write_inputs

from ltxgen.artifacts.safetensors_file import SafetensorsFile
from ltxgen.config.recipe import parse_recipe
from ltxgen.media.mp4 import Mp4Writer
from ltxgen.recipe.plan import Plan, make_plan

DISTILLED = "ltx-2.3-22b-distilled-1.1.safetensors"
FOR_DISTILLED = ("ltx23_distilled", "ltx23_ic_lora", "ltx23_retake_distilled")
Changes = dict[str, Any]


@pytest.fixture(scope="module")
def configs(tiny_set, offline, tmp_path_factory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return {path.stem: small_config(path) for path in RECIPES}


@pytest.fixture
def plan_of(configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Changes], Plan]:
    def no_weights(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(SafetensorsFile, "read", no_weights)
    monkeypatch.chdir(tmp_path)
    write_inputs(tmp_path)

    def planned(recipe: str, changes: Changes) -> Plan:
        config = copy.deepcopy(configs[recipe])
        for path, value in changes.items():
            *parents, key = path.split(".")
            functools.reduce(operator.getitem, parents, config)[key] = value
        return make_plan(parse_recipe(config))

    return planned


def told(plan: Plan) -> list[str]:
    return list(map(str, plan.problems))


def guided() -> list[str]:
    """The recipes that aren't made for a distilled checkpoint."""
    return [path.stem for path in RECIPES if path.stem.startswith("ltx23_") and path.stem not in FOR_DISTILLED]


@pytest.mark.parametrize("recipe", guided())
def test_a_distilled_checkpoint_is_not_guided(plan_of, tiny_set, tmp_path: Path, recipe: str):
    shutil.copyfile(tiny_set.file("checkpoint"), tmp_path / DISTILLED)
    (problem,) = told(plan_of(recipe, {"artifacts.checkpoint.path": DISTILLED}))
    assert problem.startswith(f"stages.base.guidance = multimodal: {DISTILLED} is distilled and runs without guidance")
    assert problem.endswith("use the dev checkpoint, or guidance `none` in this stage")


@pytest.mark.parametrize("recipe", FOR_DISTILLED)
def test_a_dev_checkpoint_runs_as_asked_where_a_distilled_one_is_meant(plan_of, tiny_set, recipe: str):
    """Given by path with a warning; found by name it is refused."""
    assert not [note for note in plan_of(recipe, {}).notes if "distilled" in note]
    given = plan_of(recipe, {"artifacts.checkpoint.path": str(tiny_set.file("checkpoint"))})
    assert told(given) == []
    (note,) = [note for note in given.notes if "distilled" in note]
    assert note.startswith("artifacts.checkpoint.path = ")
    assert "is no distilled checkpoint by its name, and base" in note
    assert note.endswith("it runs as asked")
    dev = {"artifacts.checkpoint.candidates": ["Lightricks/LTX-2.3/ltx-2.3-22b-dev.safetensors"]}
    (problem,) = told(plan_of(recipe, dev))
    assert problem.startswith("artifacts.checkpoint = ltx-2.3-tiny-dev.safetensors: is no distilled checkpoint")
    assert "name distilled files in artifacts.checkpoint.candidates, or take schedule@stages.base" in problem


@pytest.mark.parametrize(
    ("recipe", "artifact", "use"),
    [
        ("ltx23_two_stage", "distilled_lora", {}),
        ("ltx23_ic_lora", "ic_lora", {}),
        ("ltx23_one_stage", "loras.style", {"stages.base.loras": {"style": 1.0}}),
    ],
)
def test_a_lora_of_another_generation(plan_of, tiny_set, tmp_path: Path, recipe: str, artifact: str, use: Changes):
    source = tiny_set.file("ic_lora" if artifact == "ic_lora" else "distilled_lora")
    other = "ltx-2-19b-style-lora.safetensors"
    save_file(load_file(source), tmp_path / other)  # nothing in it says what it is for
    choice = (
        {"artifacts.loras": {"style": {"path": other}}} if "." in artifact else {f"artifacts.{artifact}.path": other}
    )
    (problem,) = told(plan_of(recipe, choice | use))
    assert problem.startswith(f"artifacts.{artifact}.path = {other}: is made for LTX-2, and this run needs LTX-2.3")
    assert "use a file for LTX-2.3 or a recipe for LTX-2" in problem


def upscaler(tiny_set: Any, path: Path, **changes: Any) -> str:
    """A copy of the embedded upscaler whose metadata say something else of it."""
    source = tiny_set.file("spatial_upscaler")
    with safe_open(source, framework="pt") as file:
        config = json.loads(file.metadata()["config"])
    save_file(load_file(source), path, {"config": json.dumps({**config, **changes})})
    return path.name


def test_an_upscaler_whose_factor_is_not_the_stages(plan_of, tiny_set, tmp_path: Path):
    larger = upscaler(tiny_set, tmp_path / "x1.5.safetensors", spatial_scale=1.5, rational_resampler=True)
    problems = told(plan_of("ltx23_two_stage", {"artifacts.spatial_upscaler.path": larger, "request.height": 128,
                                                "request.width": 128}))  # fmt: skip
    (size,) = [problem for problem in problems if problem.startswith("stages.refine.video")]
    assert "holds 2x3x3 latents (frames x height x width), and at scale 1 this stage works on 2x4x4" in size
    assert size.endswith("match its scale and rate to the upscaler")
    (odd,) = [
        problem
        for problem in told(plan_of("ltx23_two_stage", {"artifacts.spatial_upscaler.path": larger}))
        if problem.startswith("stages.upsample.upscaler")
    ]
    assert "latent height = 1: must be a multiple of 2 for a scale of 3/2" in odd
    longer = upscaler(tiny_set, tmp_path / "time.safetensors", spatial_upsample=False, temporal_upsample=True)
    problems = told(plan_of("ltx23_two_stage", {"artifacts.spatial_upscaler.path": longer}))
    assert any("is a temporal upscaler, but a spatial one is wanted" in problem for problem in problems)
    assert any(problem.startswith("stages.refine.video") and "holds 3x1x1 latents" in problem for problem in problems)


RETAKE, EXTEND, SOUND, PICTURES, REFERENCES = (
    f"ltx23_{name}" for name in ("retake", "extend", "audio_to_video", "keyframes", "ic_lora")
)
IMAGES = "request.images"
REQUESTS = [
    (REFERENCES, {"request.references": []}, "request.references: is missing: stage base has an IC-LoRA"),
    (PICTURES, {IMAGES: [{"path": "first.png", "frame": 9}]}, "request.images[0].frame = 9: must be from 0 to 8"),
    (PICTURES, {IMAGES: [{"path": "first.png", "frame": -10}]}, "or from the end -1 to -9"),
    (SOUND, {"request.num_frames": 161}, "gives 6.00 s from 0 s on, and the video lasts 6.71 s; ask for a shorter"),
    (SOUND, {"request.audio.start_seconds": 5.9}, "an earlier start or more of the sound, or give a longer sound"),
    (RETAKE, {"request.span": [0.3, 1.2]}, "request.span = [0.3, 1.2]: must be [start, end] in seconds, within the "),
    (RETAKE, {"request.span": [1.1, 1.2]}, "within the 1.042 s of the clip"),
    (RETAKE, {"request.span": [0.3, 0.3]}, "must be [start, end] in seconds"),
    (RETAKE, {"request.num_frames": 33}, "request.num_frames = 33: is more than the clip's 25; give at most those"),
    (RETAKE, {"request.width": 100}, "request.width = 100: must be a multiple of 32 in this recipe; the nearest are "),
    (EXTEND, {"request.num_frames": 25}, "request.num_frames = 25: must be more than the 25 frames of the clip"),
]


@pytest.mark.parametrize(("recipe", "changes", "message"), REQUESTS, ids=lambda value: str(value)[:40])
def test_a_request_that_its_files_do_not_fit(plan_of, recipe: str, changes: Changes, message: str):
    (problem,) = told(plan_of(recipe, changes))
    assert message in problem


@pytest.mark.parametrize("recipe", [RETAKE, EXTEND])
def test_a_clip_whose_size_is_not_divisible(plan_of, tmp_path: Path, recipe: str):
    """Sizes that are left to the clip: the message says what to ask for instead."""
    with Mp4Writer(tmp_path / "odd.mp4", Fraction(24)) as writer:
        writer.write_frames(torch.zeros(25, 70, 100, 3, dtype=torch.uint8))
        writer.write_audio(torch.zeros(2, 50000), 48000)
    problems = told(plan_of(recipe, {"request.source.path": "odd.mp4"}))
    assert [problem.split(";")[0] for problem in problems] == [
        "request.height = 70: must be a multiple of 32 in this recipe",
        "request.width = 100: must be a multiple of 32 in this recipe",
    ]
    assert problems[1].endswith("the nearest are 96 and 128")
    assert told(plan_of(recipe, {"request.source.path": "odd.mp4", "request.height": 64, "request.width": 96})) == []
