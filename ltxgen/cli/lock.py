"""`ltxgen lock`: a recipe with every file pinned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ltxgen.cli.composed import with_recipe
from ltxgen.config.errors import Refusal


def command(words: list[str], debug: bool) -> int | None:
    return with_recipe(_lock, words, debug)


def _lock(config: dict[str, Any]) -> None:
    from ltxgen.config.recipe import parse_recipe
    from ltxgen.recipe.lock import write_recipe
    from ltxgen.recipe.plan import make_plan

    plan = make_plan(parse_recipe(config))
    if plan.problems:  # what only this machine lacks keeps nobody from pinning
        raise Refusal(plan.problems)
    path = Path(f"{plan.recipe.name}.lock.yaml")
    write_recipe(config, plan.artifacts, path)
    print(f"{path}; run it with: ltxgen +recipe={path}")
