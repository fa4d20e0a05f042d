"""`ltxgen bench`: how fast parts of a recipe are here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ltxgen.cli.output import console


def command(words: list[str], debug: bool) -> int:
    from ltxgen.bench.command import bench
    from ltxgen.config import compose

    def composed(overrides: Sequence[str]) -> dict[str, Any]:
        return compose.compose_config(compose.name_recipe_paths(compose.open_overrides(overrides)))

    return bench(words, composed, console())
