"""`ltxgen rank` and `ltxgen sweep-rank`: what a launching ltxgen starts on each rank; not for users."""

from __future__ import annotations

from pathlib import Path


def command(words: list[str], debug: bool) -> int:
    from ltxgen.recipe.launch import run_as_rank
    from ltxgen.recipe.sweep import run_as_sweep_rank

    which, frozen, sha256, place = words
    if which == "rank":
        run_as_rank(Path(frozen), sha256, Path(place))
    else:
        run_as_sweep_rank(Path(frozen), sha256, Path(place), debug)
    return 0
