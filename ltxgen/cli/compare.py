"""`ltxgen compare`: how far two runs are from each other."""

from __future__ import annotations

import itertools
from pathlib import Path

from ltxgen.cli.output import console
from ltxgen.config.errors import MISSING, Problem, Refusal


def command(words: list[str], debug: bool) -> int:
    from rich.table import Table

    from ltxgen.media.compare import compare_runs
    from ltxgen.media.gallery import write_comparison

    page = None
    if len(words) == 4 and words[2] == "--page":
        page = Path(words[3])
    elif len(words) != 2:
        message = "takes two run folders or videos: `ltxgen compare A B`, and `--page FILE` for where the page goes"
        raise Refusal([Problem("compare", " ".join(words) or MISSING, message)])
    a, b = map(Path, words[:2])
    comparison = compare_runs(a, b)
    table = Table("", "measure", "value")
    for row in comparison.rows():
        table.add_row(*row)
    console().print(table)
    print(write_comparison(a, b, comparison, page or _unused(Path("compare.html"))))
    return 0


def _unused(path: Path) -> Path:
    """`path`, or where there is such a file already compare_2.html, ..."""
    numbered = (path.with_stem(f"{path.stem}_{number}") for number in itertools.count(2))
    return next(each for each in itertools.chain([path], numbered) if not each.exists())
