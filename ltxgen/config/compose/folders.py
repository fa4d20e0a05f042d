"""Where the parts (`conf`) and the recipes lie, and what each says of itself."""

from __future__ import annotations

import itertools
import re
from importlib import resources
from pathlib import Path


def data_folder(name: str) -> Path:
    """The folder `conf` or `recipes`: inside the installed package, or at the top of the checkout."""
    package = Path(str(resources.files("ltxgen")))
    installed = package / name
    return installed if installed.is_dir() else package.parent / name


def recipe_folders() -> list[Path]:
    """Where `+recipe=NAME` looks, in order: the user's project, then ltxgen's own."""
    return list(
        dict.fromkeys(folder.resolve() for folder in (Path("recipes"), data_folder("recipes")) if folder.is_dir())
    )


def recipe_files() -> dict[str, Path]:
    """Every recipe by name; the user's project hides ltxgen's recipe of the same name."""
    found: dict[str, Path] = {}
    for folder in recipe_folders():
        for path in sorted(folder.glob("*.yaml")):
            if path.is_file():
                found.setdefault(path.stem, path)
    return found


def groups() -> dict[str, list[str]]:
    """Every config group and what it offers, recipes first."""
    folders = sorted(path for path in data_folder("conf").iterdir() if path.is_dir() and path.name != "hydra")
    found = {folder.name: sorted(path.stem for path in folder.glob("*.yaml")) for folder in folders}
    return {"recipe": sorted(recipe_files()), **found}


def first_comment(group: str, name: str) -> str:
    """What a YAML says of itself in its first sentence of comment."""
    path = recipe_files()[name] if group == "recipe" else data_folder("conf") / group / f"{name}.yaml"
    text = path.read_text(encoding="utf-8", errors="replace")  # what is wrong with a recipe is told when it is chosen
    lines = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    words = [line.lstrip("# ") for line in lines if "@package" not in line and not line.startswith("# ltxgen")]
    return re.split(r"(?<=\.)\s", " ".join(words).strip() + " ")[0].strip()
