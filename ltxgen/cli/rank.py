"""`ltxgen rank`, `sweep-rank` and `bench-rank`: what a launching ltxgen starts on each rank; not for users."""

from __future__ import annotations

from pathlib import Path


def command(words: list[str], debug: bool) -> int:
    which, frozen, sha256, *place = words
    match which:
        case "rank":
            from ltxgen.recipe.launch import run_as_rank

            run_as_rank(Path(frozen), sha256, Path(*place))
        case "sweep-rank":
            from ltxgen.recipe.sweep import run_as_sweep_rank

            run_as_sweep_rank(Path(frozen), sha256, Path(*place), debug)
        case "bench-rank":
            from ltxgen.bench.parallel.rank import run_as_bench_rank

            run_as_bench_rank(Path(frozen), sha256)
    return 0
