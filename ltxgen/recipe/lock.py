"""The locked recipe: a composed config with nothing of this machine in it, and every file named by its content.

`ltxgen +recipe=PATH_TO/recipe.yaml` runs it anywhere. Files of the model are pinned by repository, revision, name and
sha256; files of the request (pictures, sounds, clips) lie beside the recipe, in the folder `inputs`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from ltxgen.artifacts.artifact import ResolvedArtifact
from ltxgen.config.inputs import INPUTS, with_paths
from ltxgen.config.recipe import ArtifactChoice

_DEFAULT_FOLDERS = ["./models"]
# What a rerun chooses for itself: it gets a folder of its own, and asks its machine's cache.
_OWN_OUTPUT = ("log", "tensorboard")


def settled(composed: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    """`composed` with what stages made of the request in its place, and without these stages.

    A stage says so by writing `<its name>.request`: fields of the request as they are from then on.
    """
    made = {name: state[f"{name}.request"] for name in composed["stages"] if f"{name}.request" in state}
    request = dict(composed["request"])
    for fields in made.values():
        request |= fields
    stages = {name: stage for name, stage in composed["stages"].items() if name not in made}
    return {**composed, "request": request, "stages": stages}


def write_recipe(composed: Mapping[str, Any], artifacts: Mapping[str, ResolvedArtifact], path: Path) -> None:
    """Write the locked recipe, with copies of the request's files beside it."""
    path.write_text(recipe_text(composed, artifacts, path.parent), encoding="utf-8")


def recipe_text(
    composed: Mapping[str, Any], artifacts: Mapping[str, ResolvedArtifact], folder: Path | None = None
) -> str:
    """The locked recipe; with a `folder`, the request's files are copied there."""
    kept = {key: value for key, value in composed.items() if key not in ("hydra", "cache")}
    output = {key: value for key, value in kept["output"].items() if key not in _OWN_OUTPUT}
    locked = {
        # The choice that this is laid over has keys of its own, and values alone take none away.
        "defaults": [{"override /attention": kept["attention"]["kind"]}, "_self_"],
        **_literal(kept),
        "request": _literal(with_paths(kept["request"], _beside(folder))),
        "artifacts": _literal(_pinned(kept["artifacts"], artifacts)),
        "output": {**_literal(output), "dir": "outputs/${name}/${now:%Y-%m-%d_%H-%M-%S}"},
    }
    text = yaml.safe_dump(locked, sort_keys=False, allow_unicode=True, width=120)
    return f"# @package _global_\n# ltxgen +recipe=PATH/recipe.yaml\n{text}"


def _pinned(choices: Mapping[str, Any], artifacts: Mapping[str, ResolvedArtifact]) -> dict[str, Any]:
    """The group `artifacts` with each file that was found pinned, and paths of files that weren't needed left out."""

    def pin(name: str, choice: Any) -> Any:
        if not _is_choice(choice):
            return choice
        found = artifacts.get(name)
        if (
            found is None
            or found.path is None
            or (choices.get("source", "files") != "files" and not choice.get("path"))
        ):
            return {**choice, "path": None}
        candidates = []
        if found.repo is not None:
            label = f"{found.repo}/{found.file}" if found.file else found.repo
            candidates = [f"{label}@{found.revision}" if found.revision else label]
        file = found.file or found.path.name
        return {"path": None, "candidates": candidates, "file": file, "sha256": found.sha256}

    loras = {name: pin(f"loras.{name}", choice) for name, choice in choices.get("loras", {}).items()}
    pinned = {name: pin(name, choice) for name, choice in choices.items() if name != "loras"}
    return {**pinned, "folders": _DEFAULT_FOLDERS, "loras": loras}


def _is_choice(value: Any) -> bool:
    known = set(ArtifactChoice.__dataclass_fields__)
    return isinstance(value, Mapping) and bool(value) and set(value) <= known


def _beside(folder: Path | None) -> Callable[[str], str]:
    """The path in a locked recipe of each file, under a name of its own; copies it into `folder`, if there is one."""
    places: dict[Path, str] = {}

    def place(name: str) -> str:
        source = Path(name).expanduser().resolve()
        if source not in places:
            taken = {Path(each).name for each in places.values()}
            own = source.name if source.name not in taken else f"{len(places)}_{source.name}"
            places[source] = f"{INPUTS}/{own}"
            if folder is not None:
                (folder / INPUTS).mkdir(exist_ok=True)
                shutil.copyfile(source, folder / INPUTS / own)
        return places[source]

    return place


def _literal(value: Any) -> Any:
    """Texts such that `${` in them is read as it stands: they were resolved already."""
    if isinstance(value, Mapping):
        return {key: _literal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_literal(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value
