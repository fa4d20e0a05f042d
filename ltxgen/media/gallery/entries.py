"""What a page says of a run, read from the files that it left. A run that ended early has few of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import av
import yaml

from ltxgen.media.gallery.pictures import look_at

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a sweep has many recipes; libyaml reads ten times as fast
LINKED = ("recipe.yaml", "manifest.json", "contact_sheet.png", "tensors.safetensors")


def describe_run(folder: Path, address: str, video_name: str = "video.mp4") -> dict[str, Any]:
    """The run in `folder`, which the page reaches at `address`, as plain data for the page.

    What can't be read is told in `faults`; what isn't there is None or empty.
    """
    faults: list[str] = []
    manifest = _read(folder / "manifest.json", json.loads, faults)
    recipe = _read(folder / "recipe.yaml", _yaml, faults)
    request = {**_mapping(recipe.get("request")), **_mapping(manifest.get("request"))}
    described: dict[str, Any] = {
        "recipe": _text(manifest.get("recipe") or recipe.get("name")),
        "prompt": _text(request.get("prompt")),
        "negative": _text(request.get("negative_prompt")),
        "request": {name: str(request[name]) for name in ("seed", "fps") if name in request},
        "stages": [_stage(str(name), _mapping(stage)) for name, stage in _mapping(manifest.get("stages")).items()],
        "seconds": _number(manifest.get("seconds")),
        "versions": {str(name): str(value) for name, value in _mapping(manifest.get("versions")).items()},
        "runtime": {str(name): str(value) for name, value in _mapping(manifest.get("runtime")).items()},
        "notes": [str(note) for note in manifest.get("notes") or ()],
        "links": {name: f"{address}/{quote(name)}" for name in (video_name, *LINKED) if (folder / name).is_file()},
        "video": None,
        "faults": faults,
    }
    video = folder / video_name
    if video.is_file():
        try:
            described["video"] = {"address": f"{address}/{quote(video_name)}", **vars(look_at(video))}
        except (av.FFmpegError, OSError, ValueError) as error:
            faults.append(f"{video_name} can't be read: {error}")
    return described


def differences(a: Path, b: Path) -> list[tuple[str, str, str]]:
    """(config path, value in `a`, value in `b`) where the recipes of two run folders differ; a dash stands for none."""
    left, right = (dict(_leaves(_read(run / "recipe.yaml", _yaml, []))) for run in (a, b))
    if not left or not right:
        return []
    paths = [*left, *(path for path in right if path not in left)]
    return [(path, left.get(path, "—"), right.get(path, "—")) for path in paths if left.get(path) != right.get(path)]


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    elif path and not path.startswith("output."):
        yield path, node if isinstance(node, str) else json.dumps(node, ensure_ascii=False, default=str)


def _stage(name: str, stage: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "seconds": _number(stage.get("seconds")) or 0.0,
        "load_seconds": _number(stage.get("load_seconds")) or 0.0,
        "peak_bytes": _number(stage.get("peak_bytes")),
        "from": "cache" if stage.get("from") == "cache" else "run",
        "key": _text(stage.get("key")),
    }


def _yaml(text: str) -> Any:
    return yaml.load(text, _LOADER)


def _read(path: Path, parse: Any, faults: list[str]) -> dict[str, Any]:
    """The mapping in a file; empty when it isn't there, or is something else, which is then a fault."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        faults.append(f"{path.name} can't be read: {error}")
        return {}
    try:
        content = parse(text)
    except (ValueError, yaml.YAMLError) as error:
        faults.append(f"{path.name} can't be read: {' '.join(str(error).split())}")
        return {}
    if not isinstance(content, dict):
        faults.append(f"{path.name} holds no mapping")
        return {}
    return content


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
