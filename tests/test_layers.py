"""Imports run one way: cli -> bench -> recipe -> stage -> {sampler, media, artifacts, ...} -> diffusion -> models.

Read from the syntax trees, so imports inside functions count as well.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ltxgen

ROOT = Path(ltxgen.__file__).parent

# A package may import those of lower rank and itself; those of one rank don't know each other.
RANKS = {
    "models": 0,
    "diffusion": 1,
    "sampler": 2,
    "schedule": 2,
    "guidance": 2,
    "memory": 2,
    "media": 2,
    "artifacts": 2,
    "attention": 2,
    "precision": 2,
    "reuse": 2,
    "parallel": 2,
    "runtime": 2,
    "stage": 3,
    "recipe": 4,
    "api": 5,
    "bench": 5,
    "doctor": 5,
    "__init__": 6,
    "cli": 6,
    "__main__": 7,
}
OPEN = {
    "registry",
    "config.schema",
    "config.errors",
    "config.hardware",
    "config.inputs",
}  # to all but models and diffusion
# What only some files may import: the first part of the module's name, or two parts of it.
RESERVED = {
    "hydra": {"config.compose", "config.launcher", "cli"},
    "omegaconf": {"config.compose", "config.launcher"},
    "torch.distributed": {"parallel", "runtime"},
    "accelerate": {"parallel", "runtime"},
    "torch.utils.tensorboard": {"recipe.tensorboard"},
    "triton": {
        *("models.video_vae.kernels", "models.transformer.kernels"),
        *("attention.fp8_kernels", "attention.fp8_hopper"),
    },
    "transformers": {"models.text_encoder"},
    "sentencepiece": {"models.text_encoder"},
    "diffusers": {"bench.peers"},
    "ltx_core": set(),
}


def name_of(path: Path) -> str:
    """`models.transformer.block` of a file in the package."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def imports_of(source: str, package: str) -> Iterator[str]:
    """Every module that a source text imports, in full."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)  # `from torch import distributed`


def violations(name: str, source: str) -> list[str]:
    """What the file called `name` imports although it must not."""
    top = name.split(".")[0]
    package = f"ltxgen.{name}" if (ROOT / Path(*name.split("."))).is_dir() else f"ltxgen.{name}".rpartition(".")[0]
    return [module for module in imports_of(source, package) if not _allowed(name, top, module)]


def _allowed(name: str, top: str, module: str) -> bool:
    for reserved, owners in RESERVED.items():
        if _within(module, reserved):
            return any(_within(name, owner) for owner in owners)
    if not _within(module, "ltxgen"):
        return top not in ("models", "diffusion") or _within(module, "torch") or module.split(".")[0] in STANDARD
    wanted = module.removeprefix("ltxgen").removeprefix(".")
    if wanted in ("", "__version__") or wanted.split(".")[0] == top:
        return top not in ("models", "diffusion") or wanted != ""
    if any(_within(wanted, each) for each in OPEN):
        return top not in ("models", "diffusion")
    if wanted == "config" or any(
        _within(wanted, each) for each in ("config.compose", "config.launcher", "config.requests")
    ):
        return top in ("cli", "api")
    if _within(wanted, "config.recipe"):
        return RANKS.get(top, -1) >= RANKS["stage"]
    if top not in RANKS:  # registry and config know no part
        return False
    return RANKS[wanted.split(".")[0]] < RANKS[top]


STANDARD = set(sys.stdlib_module_names)


def _within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


FILES = sorted(ROOT.rglob("*.py"), key=str)


@pytest.mark.parametrize("path", FILES, ids=[name_of(path) or "ltxgen" for path in FILES])
def test_imports(path: Path):
    assert violations(name_of(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("models.vocoder.config", "import numpy"),
        ("models.vocoder.config", "from ltxgen.config.errors import Problem"),
        ("models.vocoder.config", "from ltxgen.diffusion.grids import VideoGrid"),
        ("models.vocoder.config", "import transformers"),
        ("models.vocoder.config", "import omegaconf"),
        ("models.vocoder.config", "def f():\n    from torch import distributed"),
        ("models.vocoder.config", "import ltxgen"),
        ("diffusion.noise", "from ltxgen.registry import register"),
        ("diffusion.noise", "from ltxgen.stage.protocol import Stage"),
        ("diffusion.noise", "from .. import artifacts"),
        ("diffusion.noise", "import safetensors"),
        ("sampler.euler", "from ltxgen.guidance.protocol import Pass"),
        ("sampler.euler", "from ltxgen.config.recipe import Recipe"),
        ("artifacts.load", "from ltxgen.stage.protocol import PartRequest"),
        ("artifacts.load", "import torch.distributed as dist"),
        ("artifacts.load", "import accelerate"),
        ("media.mp4", "from ltxgen.artifacts.hub import download"),
        ("stage.denoise", "from ltxgen.recipe.plan import Plan"),
        ("stage.denoise", "from ltxgen.config import compose"),
        ("recipe.plan", "from ltxgen import cli"),
        ("recipe.plan", "from hydra import compose"),
        ("config.schema", "from ltxgen.recipe.plan import Plan"),
        ("config.recipe", "from omegaconf import OmegaConf"),
        ("config.compose", "from ltxgen.cli import main"),
        ("registry", "from ltxgen.stage.protocol import Stage"),
        ("recipe.run", "import diffusers"),
        ("recipe.run", "from ltxgen.bench.timing import alternate"),
        ("bench.command", "from ltxgen.config import compose"),
        ("bench.steps", "import diffusers"),
        ("recipe.run", "from ltx_core import loader"),
    ],
)
def test_a_wrong_import_is_found(name: str, source: str):
    assert violations(name, source)


def test_every_part_has_a_rank():
    parts = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert parts - set(RANKS) - {"__init__", "registry", "config"} == set()


def test_models_know_no_files_and_no_environment():
    # Gemma's tokenizer is read from a folder by transformers; that is its format.
    for path in FILES:
        if not _within(name_of(path), "models") or path.name == "tokenizer.py":
            continue
        modules = set(imports_of(path.read_text(encoding="utf-8"), ""))
        assert not modules & {"os", "pathlib", "io", "json", "os.environ"}, path
