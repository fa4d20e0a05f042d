"""What comes in from files: the files that a request names, every `path` in its group, and YAML of a sane size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MAX_VALUES = 100_000  # in a recipe or a file of requests
INPUTS = "inputs"  # the folder beside a locked recipe that holds them


def with_paths(request: Any, place: Callable[[str], str]) -> Any:
    """The group `request`, plain data, with each file's path replaced by what `place` makes of it."""
    if isinstance(request, Mapping):
        return {
            key: place(value) if key == "path" and isinstance(value, str) else with_paths(value, place)
            for key, value in request.items()
        }
    if isinstance(request, list | tuple):
        return [with_paths(item, place) for item in request]
    return request


def beside(folder: Path) -> Callable[[str], str]:
    """For `with_paths`: files in the folder `inputs` of a locked recipe in `folder` get their whole path."""
    return lambda path: str(folder / path) if path.startswith(f"{INPUTS}/") else path


def check_size(content: Any) -> None:
    """ValueError for YAML whose anchors stand for more values than memory holds: `&a [*b, *b]`, and so on."""
    sizes: dict[int, int] = {}

    def size_of(node: Any) -> int:
        if not isinstance(node, dict | list):
            return 1
        if id(node) not in sizes:
            sizes[id(node)] = 1  # of an anchor within itself
            inner = node.values() if isinstance(node, dict) else node
            sizes[id(node)] = 1 + sum(map(size_of, inner))
        return sizes[id(node)]

    if (size := size_of(content)) > MAX_VALUES:
        raise ValueError(f"it stands for {size:,} values, more than {MAX_VALUES:,}")
