"""What a video says of its own making: the run's recipe and manifest, in the mp4's comment tag and in its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import yaml

from ltxgen.config.errors import Problem, Refusal
from ltxgen.media.container import open_media

_MARK = "ltxgen"  # the key that tells our comment from others'; its value is the version of this layout
_LAYOUT = 1


@dataclass(frozen=True)
class Provenance:
    """The recipe as YAML text, which `ltxgen +recipe=FILE` runs, and the manifest as far as it is known."""

    recipe: str
    manifest: dict[str, Any]

    def as_comment(self) -> str:
        """For the comment tag: one line of JSON."""
        content = {_MARK: _LAYOUT, "recipe": self.recipe, "manifest": self.manifest}
        return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def read_provenance(place: Path | str) -> Provenance:
    """Of a run folder, or of a video, which alone is enough.

    What a stranger's video says is text and data here, nothing more. Raises Refusal when there is nothing to read.
    """
    place = Path(place)
    if place.is_dir():
        return _from_folder(place)
    if not place.is_file():
        raise _refused(place, "there is no such file or folder")
    try:
        with open_media(place) as container:
            comment = container.metadata.get("comment", "")
    except (av.FFmpegError, OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise _refused(place, f"is no readable video ({why}); give one that ltxgen wrote, or a run's folder") from error
    try:
        content = json.loads(comment)
        return _checked(content["recipe"], content["manifest"]) if _MARK in content else _foreign(place)
    except (ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError) as error:
        if comment.startswith(f'{{"{_MARK}":'):
            raise _refused(place, f"holds a recipe that can't be read ({type(error).__name__}: {error})") from error
        return _foreign(place)


def _from_folder(folder: Path) -> Provenance:
    try:
        recipe = (folder / "recipe.yaml").read_text(encoding="utf-8")
        return _checked(recipe, json.loads((folder / "manifest.json").read_text(encoding="utf-8")))
    except OSError as error:
        what = f"is no folder of a run: {Path(error.filename).name} can't be read ({error.strerror})"
        raise _refused(folder, what) from error
    except (ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise _refused(folder, f"holds a recipe or manifest that can't be read ({error})") from error


def _checked(recipe: Any, manifest: Any) -> Provenance:
    if not isinstance(recipe, str) or not isinstance(manifest, dict):
        raise TypeError("the recipe must be a text and the manifest a mapping")
    if not isinstance(yaml.safe_load(recipe), Mapping):  # which also refuses control characters in it
        raise TypeError("the recipe is no mapping in YAML")
    return Provenance(recipe, manifest)


def _foreign(place: Path) -> Provenance:
    raise _refused(place, "holds no recipe: ltxgen did not write it, or a later tool has dropped its comment tag")


def _refused(place: Path, message: str) -> Refusal:
    return Refusal([Problem("show", str(place), message)])
