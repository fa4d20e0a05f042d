"""What every test may use: the embedded tiny model, made once, and the command line called inside this process."""

from __future__ import annotations

import contextlib
import gc
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from hydra.core.global_hydra import GlobalHydra

from ltxgen import cli
from ltxgen.artifacts.tiny import FILES, embedded_folder
from ltxgen.config.compose import RecipesByPath

torch.set_num_threads(1)  # the models are so small that more threads only wait for each other


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector need not walk it, a million objects, again and again."""
    gc.collect()
    gc.freeze()


RECIPE = ("+recipe=ltx23_two_stage", "model=ltx23_tiny")
# The smallest request that the two-stage recipe takes: 8 tokens of video, 9 of sound. Tests of how a run goes want
# every stage to run.
SMALL = ("request.height=64", "request.width=64", "request.num_frames=9", "stages.base.steps=2", "cache=off")


@dataclass(frozen=True)
class Result:
    """How a command ended: its exit code and what it printed."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class TinySet:
    """The embedded model's files, to be copied and broken at will, never to be changed in place."""

    folder: Path

    def file(self, artifact: str) -> Path:
        return self.folder / FILES[artifact]


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinySet]:
    """The embedded model in a cache folder of this test session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LTXGEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield TinySet(embedded_folder())


@pytest.fixture(scope="session")
def offline() -> Iterator[None]:
    """No hub, no model folders and no token of this machine, here and in child processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(constants, "HF_HUB_OFFLINE", True)  # read from the environment when it was imported
        for name in ("LTXGEN_MODELS", "HF_TOKEN"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def tiny_words() -> tuple[str, ...]:
    """The two-stage recipe on the embedded model, at the smallest size."""
    return RECIPE + SMALL


@pytest.fixture(scope="session")
def stored_run(run_ltxgen: Callable[..., Result], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`stored_run("request.seed=2")`: the output folder, with tensors, of the smallest run with these words. Each is
    made once in a session, so look but don't touch."""
    made: dict[tuple[str, ...], Path] = {}

    def folder_of(*words: str) -> Path:
        if words not in made:
            folder = tmp_path_factory.mktemp("run") / "out"
            result = run_ltxgen(
                *RECIPE, *SMALL, "output.tensors=true", f"output.dir={folder}", *words, cwd=folder.parent
            )
            assert result.code == 0, result.err
            made[words] = folder
        return made[words]

    return folder_of


@pytest.fixture(scope="session")
def run_ltxgen(tiny_set: TinySet, offline: None) -> Callable[..., Result]:
    """`run_ltxgen("plan", "+recipe=...", cwd=folder)`: one command as its own process would run it."""
    return call_ltxgen


def call_ltxgen(*words: str, cwd: Path | str) -> Result:
    """Run the command line in this process, in the folder `cwd`, with nothing of Hydra's left from earlier calls."""
    out, err = io.StringIO(), io.StringIO()
    code: object = None
    before = os.getcwd()
    os.chdir(cwd)
    try:
        _forget_hydra()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                cli.main(list(words))
            except SystemExit as end:
                code = end.code
    finally:
        os.chdir(before)
        _forget_hydra()
    assert isinstance(code, int), f"exit code {code!r}"
    return Result(code, out.getvalue(), err.getvalue())


def _forget_hydra() -> None:
    GlobalHydra.instance().clear()
    RecipesByPath.instance().files.clear()
