"""`ltxgen fetch`: downloads and verifies the files of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ltxgen.cli.composed import with_recipe
from ltxgen.cli.output import console
from ltxgen.config.errors import Refusal


def command(words: list[str], debug: bool) -> int | None:
    return with_recipe(_fetch, words, debug)


def _fetch(config: Mapping[str, Any]) -> None:
    from ltxgen.artifacts.resolver import Places, fetch
    from ltxgen.config.recipe import parse_recipe
    from ltxgen.recipe.plan import make_plan
    from ltxgen.recipe.show import artifact_table

    recipe = parse_recipe(config)
    specs = make_plan(recipe).specs
    result = fetch(specs, Places(folders=recipe.artifacts.folders), print)
    tried = {**{name: found.tried for name, found in result.artifacts.items()}, **result.tried}
    console().print(artifact_table(specs, result.artifacts, tried))
    if result.problems:
        raise Refusal(result.problems)
