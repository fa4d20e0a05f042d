"""`ltxgen cache`: the stored outputs of stages."""

from __future__ import annotations

from ltxgen.cli.output import console


def command(words: list[str], debug: bool) -> int:
    from ltxgen.recipe.cache_command import cache

    return cache(words, console())
