"""`ltxgen plan`: what would run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ltxgen.cli.composed import with_recipe
from ltxgen.cli.output import console
from ltxgen.config.errors import Refusal


def command(words: list[str], debug: bool) -> int | None:
    return with_recipe(_plan, words, debug)


def _plan(config: Mapping[str, Any]) -> None:
    from ltxgen.config.recipe import parse_recipe
    from ltxgen.recipe.plan import make_plan
    from ltxgen.recipe.show import show_plan

    plan = make_plan(parse_recipe(config))
    show_plan(plan, console())
    if plan.problems:
        raise Refusal(plan.problems)
