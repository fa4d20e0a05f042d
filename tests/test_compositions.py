"""Every recipe, run small: with weights elsewhere and by other backends, and again from its file and the cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compatibility import BESIDE, small_config
from safetensors.torch import load_file
from test_recipes import RECIPES, wanted, write_inputs

recipes = pytest.mark.parametrize("number", range(len(RECIPES)), ids=[path.stem for path in RECIPES])


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def small(tiny_set, inputs) -> Callable[[Path], tuple[str, ...]]:
    """`small(recipe)`: the words that run it on the embedded model, at the smallest size, in the fewest steps."""

    def words(path: Path) -> tuple[str, ...]:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(inputs)
            config = small_config(path)
        request, model = config["request"], config["model"]["name"]
        sizes = [f"request.{name}={request[name]}" for name in ("height", "width", "num_frames") if request[name]]
        denoising = {name: stage for name, stage in config["stages"].items() if stage["kind"] == "denoise"}
        steps = [f"stages.{name}.steps=2" for name, stage in denoising.items() if stage["steps"]]
        # The first level, which says how much of what comes in is kept, and one between.
        levels = {name: stage["sigmas"] for name, stage in denoising.items() if stage["sigmas"]}
        steps += [f"stages.{name}.sigmas=[{each[0]},{each[len(each) // 2]},0.0]" for name, each in levels.items()]
        return (*wanted(path.stem), f"model={model}", "runtime.device=cpu", *sizes, *steps)

    return words


@pytest.fixture(scope="module")
def runs(run_ltxgen, small, inputs, tmp_path_factory) -> Callable[[int], Path]:
    """`runs(number)`: the folder of a recipe's run, with its stages' outputs in the cache. Made once."""
    made: dict[int, Path] = {}

    def folder_of(number: int) -> Path:
        if number not in made:
            made[number] = tmp_path_factory.mktemp("run") / "out"
            words = (*small(RECIPES[number]), "output.tensors=true", "memory=swap", "attention=sdpa", "cache=write")
            result = run_ltxgen(*words, f"output.dir={made[number]}", cwd=inputs)
            assert result.code == 0, result.err
        return made[number]

    return folder_of


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


@recipes
def test_policies_and_attention_change_nothing(number: int, runs, run_ltxgen, small, inputs, tmp_path: Path):
    """Blocks that stream, from the host or from disk, and attention that is computed otherwise, against weights that
    wait on the host and torch's own attention."""
    stream = f"memory.stream_from={('host', 'disk')[number // 2 % 2]}"
    words = ("memory=stream", stream, f"attention={BESIDE[number % 2]}", "output.tensors=true", "cache=off")
    result = run_ltxgen(*small(RECIPES[number]), *words, f"output.dir={tmp_path / 'out'}", cwd=inputs)
    assert result.code == 0, result.err
    mine, theirs = (load_file(folder / "tensors.safetensors") for folder in (tmp_path / "out", runs(number)))
    assert mine.keys() == theirs.keys()
    assert any(".final." in name for name in mine)
    for name, value in mine.items():
        assert value.float().isfinite().all(), name
        levels = 1 if value.dtype == torch.uint8 else 1e-4
        torch.testing.assert_close(value.float(), theirs[name].float(), rtol=1e-4, atol=levels, msg=name)
    assert manifest_of(tmp_path / "out")["runtime"]["memory"].startswith("stream")


@recipes
def test_a_run_comes_again_from_its_file_and_the_cache(number: int, runs, run_ltxgen, inputs, tmp_path: Path):
    first, again = runs(number), tmp_path / "again"
    words = (f"+recipe={first / 'recipe.yaml'}", "output.tensors=false", "cache=read", f"output.dir={again}")
    result = run_ltxgen(*words, cwd=tmp_path)
    assert result.code == 0, result.err
    stages = manifest_of(again)["stages"]
    assert {name for name, stage in stages.items() if stage["from"] == "run"} <= {"decode_video", "write"}
    for name in ("video.mp4", "contact_sheet.png", "sound.wav"):
        assert (first / name).exists() == (again / name).exists()
    pictures = [name for name in ("contact_sheet.png", "sound.wav") if (first / name).exists()]
    assert pictures
    for name in pictures:
        assert (again / name).read_bytes() == (first / name).read_bytes()
