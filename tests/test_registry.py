"""Names find components, and nothing that a recipe says is ever run."""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import ltxgen
from ltxgen import registry
from ltxgen.config.compose import read_recipe
from ltxgen.config.errors import Refusal


def test_kinds_are_the_files_of_the_group():
    shared = ("checkpoints", "denoise_problems", "denoiser", "initial_states")
    folder = Path(ltxgen.__file__).parent / "stage"
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "protocol", *shared}
    assert set(registry.kinds("stage")) == files
    for kind in files:
        assert registry.config_of("stage", kind).kind == kind


@pytest.mark.parametrize("kind", ["eular", "protocol", "__init__", "os.system", "..cli", "../cli", "", "ltxgen.cli"])
def test_unknown_kinds_import_nothing(kind: str):
    registry.kinds("sampler")  # the package itself is imported to see its files
    before = set(sys.modules)
    with pytest.raises(KeyError):
        registry.config_of("sampler", kind)
    assert set(sys.modules) == before


def test_registered_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(registry, "_CONFIGS", dict(registry._CONFIGS))

    @registry.register("sampler", "toy")
    @dataclass(frozen=True)
    class Toy:
        steps: int = 1

    assert registry.config_of("sampler", "toy") is Toy
    assert Toy.kind == "toy"
    assert "toy" in registry.kinds("sampler")

    class Other:
        pass

    with pytest.raises(AssertionError, match="sampler/toy is registered twice"):
        registry.register("sampler", "toy")(Other)
    assert registry.config_of("sampler", "toy") is Toy


def test_nothing_in_ltxgen_instantiates_from_a_config():
    runs_code = {"instantiate", "get_class", "get_method", "get_object"}
    for path in Path(ltxgen.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = isinstance(node, ast.Name) and node.id in {"eval", "exec", "instantiate", "__import__"}
            imported = isinstance(node, ast.alias) and node.name in runs_code
            assert not called, f"{path}:{node.lineno}"
            assert not imported, f"{path}:{node.lineno}"


EVIL = "{_target_: shutil.copy, src: /etc/hostname, dst: stolen}"


@pytest.mark.parametrize(
    "recipe",
    [
        f"hydra: {{callbacks: {{x: {EVIL}}}}}",
        f"# @package hydra.callbacks.x\n{EVIL}",
        f"# @package hydra\ncallbacks: {{x: {EVIL}}}",
        "defaults: [override hydra/launcher: other]",
        "defaults: [{/recipe@_global_.hydra.callbacks.x: other}]",
        "stages: !!python/object/apply:shutil.copy [/etc/hostname, stolen]",
        f"stages: {{prompt: {EVIL}}}",
        f"runtime: {EVIL}",
        f"evil: {EVIL}",
    ],
)
def test_a_recipe_cannot_run_code(recipe: str, tmp_path: Path, run_ltxgen):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "strange.yaml").write_text(recipe)
    (tmp_path / "recipes" / "other.yaml").write_text(EVIL)
    # Beside a recipe that is in order, so that nothing else keeps it from running.
    result = run_ltxgen("plan", "+recipe=[ltx23_two_stage,strange]", "model=ltx23_tiny", cwd=tmp_path)
    assert not (tmp_path / "stolen").exists()
    assert result.code == 2, result.err
    assert "Traceback" not in result.err


def test_recipes_leave_hydra_alone(tmp_path: Path):
    path = tmp_path / "r.yaml"
    path.write_text("hydra: {verbose: true}")
    with pytest.raises(Refusal, match="sets `hydra`, which only the command line may"):
        read_recipe(path)
    path.write_text("# @package _global_\nname: x\nstages: {}\n")
    content, package = read_recipe(path)
    assert (content.name, package) == ("x", "_global_")
