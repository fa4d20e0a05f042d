"""The words of `ltxgen bench parallel`: options and overrides, in any order."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ltxgen.bench.options import SIZES, Options, parse_sizes, says_request
from ltxgen.config.errors import MISSING, Problem, Refusal

STEPS = 4
OPTIONS = "--sizes WxHxF,... --steps N --budget SECONDS --json FILE --against FILE --from FILE --markdown"


@dataclass(frozen=True)
class ParallelOptions:
    """What was asked for. `steps`: as many of a stage's steps are timed at most. `budget_seconds` counts from the start
    of the command. `shown`: a file of earlier figures, to be shown instead of measuring."""

    bench: Options
    steps: int
    budget_seconds: float | None
    shown: Path | None
    markdown: bool


def parse_parallel_options(words: Sequence[str]) -> ParallelOptions:
    """Refusal for what is no option and no override."""
    overrides = tuple(word for word in words if not word.startswith("--") and ("=" in word or word.startswith("~")))
    parser = _Parser(add_help=False, allow_abbrev=False)
    for name in ("--sizes", "--steps", "--budget", "--json", "--against", "--from"):
        parser.add_argument(name)
    parser.add_argument("--markdown", action="store_true")
    given = vars(parser.parse_args([word for word in words if word not in overrides]))

    problems: list[Problem] = []
    steps, budget = (_positive(given, name, problems) for name in ("steps", "budget"))
    sizes = parse_sizes(given["sizes"], problems)
    if given["sizes"] is None and not says_request(overrides):
        sizes = SIZES[::-1]  # the large one is what several GPUs are for
    files = {name: None if given[name] is None else Path(given[name]) for name in ("json", "against", "from")}
    if files["json"] is not None and not files["json"].absolute().parent.is_dir():
        problems.append(Problem("--json", given["json"], "the folder it is to stand in does not exist"))
    if problems:
        raise Refusal(problems)
    bench = Options((), sizes, overrides, "none", files["json"], files["against"])
    return ParallelOptions(bench, int(steps or STEPS), budget, files["from"], given["markdown"])


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Refusal([Problem("bench parallel", MISSING, f"{message}; it takes {OPTIONS} and key=value")])


def _positive(given: dict[str, str | None], name: str, problems: list[Problem]) -> float | None:
    text = given[name]
    if text is None:
        return None
    try:
        if (value := float(text)) >= 1 and (name != "steps" or value >= 2):
            return value
    except ValueError:
        pass
    least = "a number of at least 2, which a schedule needs" if name == "steps" else "a number of seconds, at least 1"
    problems.append(Problem(f"--{name}", text, f"must be {least}"))
    return None
