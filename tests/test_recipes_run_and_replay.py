"""Every shipped recipe runs on its embedded model, on one process and on two, and its recipe.yaml makes it again."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from test_recipes import RECIPES, tiny_model, wanted, write_inputs

import ltxgen
from ltxgen.config import compose
from ltxgen.recipe.replay import verdict
from ltxgen.recipe.sweep import Sweep
from ltxgen.recipe.sweep_folder import Job

SMALLEST = ("request.height=64", "request.width=64", "request.num_frames=9")
SIZES = {  # of recipes that don't take the smallest
    "ltx23_three_stage": ("request.height=192", "request.width=192", "request.num_frames=9"),
    "ltx23_temporal_upscale": ("request.height=64", "request.width=64", "request.num_frames=17"),
    "ltx23_extend": ("request.num_frames=33", "stages.source.num_frames=9"),
    "ltx23_retake": (),
    "ltx23_retake_distilled": (),
}
recipes = pytest.mark.parametrize("name", [path.stem for path in RECIPES])


NAMES = [path.stem for path in RECIPES]
WRITTEN = ("decode_video", "decode_audio", "write", "write_audio")


def composed(name: str, *words: str) -> dict[str, Any]:
    """A recipe's cheapest run."""
    own = [*wanted(name), tiny_model(name), *SIZES.get(name, SMALLEST), "output.tensors=true", "runtime.device=cpu"]
    config = compose.compose_config([*own, "cache=off", *words])
    if config["stages"]["base"]["steps"]:
        config["stages"]["base"]["steps"] = 2
    return config


class Runs:
    """Of all recipes, in this process: their folders, with what they load kept from one to the next."""

    def __init__(self, folder: Path, inputs: Path) -> None:
        self.folder, self.inputs = folder, inputs
        self.sweep = Sweep()
        self.made: dict[str, Path] = {}

    def of(self, name: str) -> Path:
        if name not in self.made:
            self.made[name] = self.run(composed(name), len(self.made))
        return self.made[name]

    def run(self, config: dict[str, Any], number: int) -> Path:
        config["output"]["dir"] = str(self.folder / str(number))
        with contextlib.chdir(self.inputs):
            (folder,) = self.sweep.run([Job(number, (), config)])
        return folder


@pytest.fixture(scope="module")
def runs(tiny_set, offline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    inputs = tmp_path_factory.mktemp("inputs")
    write_inputs(inputs)
    made = Runs(tmp_path_factory.mktemp("runs"), inputs)
    yield made
    made.sweep.close()


@recipes
def test_it_runs_and_its_run_is_made_again(name: str, runs: Runs):
    folder = runs.of(name)
    written = "sound.wav" if name == "ltx23_text_to_audio" else "video.mp4"
    assert (folder / written).stat().st_size > 0
    words = compose.name_recipe_paths(compose.open_overrides([f"+recipe={folder / 'recipe.yaml'}"]))
    config = compose.compose_config([*words, "cache.mode=off"])
    again = runs.run(config, 100 + NAMES.index(name))
    found = verdict(folder, again)
    assert found.equal, found.lines


def test_all_run_on_two_processes(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One launch for all of them, as far as the latents."""
    monkeypatch.chdir(runs.inputs)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(ltxgen.__file__).parent.parent), prepend=os.pathsep)
    configs = [
        composed(name, "parallel.num_processes=2", "runtime.threads=1", f"output.dir={tmp_path / str(number)}")
        for number, name in enumerate(NAMES)
    ]
    for config in configs:
        config["stages"] = {name: each for name, each in config["stages"].items() if each["kind"] not in WRITTEN}
    sweep = Sweep()
    try:
        folders = sweep.run([Job(number, (), config) for number, config in enumerate(configs)])
    finally:
        sweep.close()
    for name, folder in zip(NAMES, folders, strict=True):
        mine, alone = (load_file(each / "tensors.safetensors") for each in (folder, runs.of(name)))
        finals = [key for key in alone if ".final." in key]
        assert finals
        for key in finals:
            assert (mine[key] - alone[key]).norm() <= 1e-5 * alone[key].norm(), f"{name}: {key}"
