"""What commands print on stdout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def print_results(folder: Path, config: Mapping[str, Any]) -> float | None:
    """Print where the results of a run are; returns what a sweeper compares."""
    from ltxgen.recipe.manifest import objective

    print_files(folder)
    return objective(folder, config["output"]["objective"])


def print_files(folder: Path | None) -> None:
    """What a run is for, where this process has made it."""
    for name in ("video.mp4", "sound.wav", "contact_sheet.png"):
        if folder is not None and (folder / name).exists():
            print(folder / name)


def print_page(folder: Path) -> None:
    if (folder / "index.html").exists():
        print(folder / "index.html")


def console() -> Any:
    """Where tables go: as wide as the terminal, and wide where a file or pipe has no width to respect."""
    from rich.console import Console

    stdout = Console(highlight=False)
    if not stdout.is_terminal:
        stdout.width = 160
    return stdout
