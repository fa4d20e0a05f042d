"""Launchers and sweepers of others, where they are installed: each job is a run of its own in the sweep's folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import ltxgen

LATENTS_ONLY = ("~stages.decode_video", "~stages.decode_audio", "~stages.write")


def sweep(cwd: Path, *words: str) -> None:
    path = os.pathsep.join([str(Path(ltxgen.__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = (sys.executable, "-m", "ltxgen", "-m", *words, "output.dir=out")
    ran = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr


def seeds(folder: Path) -> dict[str, int]:
    manifests = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/manifest.json")}
    return {name: manifest["request"]["seed"] for name, manifest in manifests.items()}


def test_joblib(tiny_words, tiny_set, offline, tmp_path: Path):
    """Also with a recipe given by path, which the processes of the jobs have to find."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    from ltxgen.config import compose

    recipe = tmp_path / "mine.yaml"
    recipe.write_text(compose.recipe_files()["ltx23_two_stage"].read_text())
    words = (f"+recipe={recipe}", *tiny_words[1:], *LATENTS_ONLY, "request.seed=1,2")
    sweep(tmp_path, *words, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert seeds(tmp_path / "out") == {"0": 1, "1": 2}


def test_optuna(tiny_words, tiny_set, offline, tmp_path: Path):
    """It chooses jobs one by one, and components stay loaded between them."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    ranges = ("request.seed=choice(1,2,3)", "stages.refine.loras.distilled=interval(0.3,0.9)")
    trials = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1")
    sweep(tmp_path, *tiny_words, *LATENTS_ONLY, *ranges, *trials, "output.objective=stages.base.seconds")
    folder = tmp_path / "out"
    record = json.loads((folder / "sweep.json").read_text())
    assert [job["status"] for job in record["jobs"]] == ["done"] * 3
    assert set(record["loads"].values()) == {1}
    best = yaml.safe_load((folder / "optimization_results.yaml").read_text())
    manifests = [json.loads((folder / str(number) / "manifest.json").read_text()) for number in range(3)]
    assert best["best_value"] == min(manifest["stages"]["base"]["seconds"] for manifest in manifests)
