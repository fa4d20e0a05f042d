"""Every shipped recipe runs on its embedded model, on one process and on two, and its recipe.yaml makes the run again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from test_recipes import RECIPES, tiny_model, wanted, write_inputs

import ltxgen
from ltxgen.config import compose
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


def words(name: str) -> list[str]:
    """Of a recipe's cheapest run."""
    config = compose.compose_config(wanted(name))
    steps = ["stages.base.steps=2"] if config["stages"]["base"]["steps"] else []
    rest = ("output.tensors=true", "cache=off", "runtime.device=cpu")
    return [*wanted(name), tiny_model(name), *SIZES.get(name, SMALLEST), *steps, *rest]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def run_of(run_ltxgen, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The output folder of a recipe's run on one process."""
    made: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name) / "out"
            result = run_ltxgen(*words(name), f"output.dir={made[name]}", cwd=inputs)
            assert result.code == 0, result.err
        return made[name]

    return run


@recipes
def test_it_runs_and_its_run_is_made_again(name: str, run_of, run_ltxgen, tmp_path: Path):
    folder = run_of(name)
    assert any((folder / file).stat().st_size for file in ("video.mp4", "sound.wav") if (folder / file).exists())
    result = run_ltxgen("replay", str(folder), "--check", cwd=tmp_path)
    assert result.code == 0, result.out + result.err
    assert result.out.startswith("bit-equal: ")


def test_all_run_on_two_processes(run_of, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One launch for all of them."""
    names = [path.stem for path in RECIPES]
    alone = {name: run_of(name) for name in names}
    monkeypatch.chdir(inputs)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(ltxgen.__file__).parent.parent), prepend=os.pathsep)
    ranks = ("parallel.num_processes=2", "runtime.threads=1")
    configs = [
        compose.compose_config([*words(name), *ranks, f"output.dir={tmp_path / str(number)}"])
        for number, name in enumerate(names)
    ]
    sweep = Sweep()
    try:
        folders = sweep.run([Job(number, (), config) for number, config in enumerate(configs)])
    finally:
        sweep.close()
    for name, folder in zip(names, folders, strict=True):
        mine, other = (load_file(each / "tensors.safetensors") for each in (folder, alone[name]))
        finals = [key for key in other if ".final." in key]
        assert finals
        for key in finals:
            assert (mine[key] - other[key]).norm() <= 1e-5 * other[key].norm(), f"{name}: {key}"
