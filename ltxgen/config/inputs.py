"""The files that a request names: every `path` in the group `request`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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
