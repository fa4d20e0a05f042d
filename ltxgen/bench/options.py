"""The words of `ltxgen bench`: cases, options and overrides, in any order."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ltxgen.config.errors import MISSING, Problem, Refusal, did_you_mean

FORWARD, GUIDED, REFINE, DECODE, VOCODER, RUN = CASES = ("forward", "guided", "refine", "decode", "vocoder", "run")
PEERS = ("auto", "diffusers", "none")


@dataclass(frozen=True)
class Size:
    """Pixels and frames of a request."""

    width: int
    height: int
    num_frames: int

    def overrides(self) -> list[str]:
        return [f"request.{name}={value}" for name, value in vars(self).items()]


SIZES = (Size(768, 512, 121), Size(1536, 1024, 121))


@dataclass(frozen=True)
class Options:
    """What was asked for. No `cases` means all that the recipe has, no `sizes` the request's own."""

    cases: tuple[str, ...]
    sizes: tuple[Size, ...]
    overrides: tuple[str, ...]
    peer: str
    json: Path | None
    against: Path | None

    @property
    def chooses_weights(self) -> bool:
        """Whether nothing was said of the model, which is then the full one with random weights."""
        return not any(re.match(r"\+*(artifacts|model)\b", word) for word in self.overrides)

    def overrides_of_runs(self, output: Path) -> list[list[str]]:
        """The overrides of each size; what is not said is the two-stage recipe with random weights."""
        words = list(self.overrides)
        if not any(re.match(r"\+*recipe=", word) for word in words):
            words.insert(0, "+recipe=ltx23_two_stage")
        if self.chooses_weights:
            words.insert(1, "artifacts=synthetic")
        sizes = [size.overrides() for size in self.sizes] or [[]]
        return [[*words, *size, f"output.dir={output}"] for size in sizes]


def parse_options(words: Sequence[str]) -> Options:
    """Refusal for what is no case, no option and no override."""
    overrides = tuple(word for word in words if not word.startswith("--") and ("=" in word or word.startswith("~")))
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("cases", nargs="*")
    for name in ("--sizes", "--peer", "--json", "--against"):
        parser.add_argument(name)
    given = parser.parse_intermixed_args([word for word in words if word not in overrides])

    problems = [_unknown("bench", case, CASES) for case in given.cases if case not in CASES]
    if given.peer is not None and given.peer not in PEERS:
        problems.append(_unknown("--peer", given.peer, PEERS))
    sizes = parse_sizes(given.sizes, problems)
    if given.sizes is None and not says_request(overrides):
        sizes = SIZES
    if given.json is not None and not Path(given.json).absolute().parent.is_dir():
        problems.append(Problem("--json", given.json, "the folder it is to stand in does not exist"))
    if problems:
        raise Refusal(problems)
    return Options(
        cases=tuple(case for case in CASES if case in given.cases),
        sizes=sizes,
        overrides=overrides,
        peer=given.peer or "auto",
        json=None if given.json is None else Path(given.json),
        against=None if given.against is None else Path(given.against),
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        options = f"--sizes WxHxF,... --peer {'|'.join(PEERS)} --json FILE --against FILE"
        raise Refusal([Problem("bench", MISSING, f"{message}; it takes {', '.join(CASES)}, {options} and key=value")])


def says_request(overrides: Sequence[str]) -> bool:
    """Whether the request is named or changed, so that its own size is meant."""
    return any(re.match(r"\+*request\b", word) for word in overrides)


def parse_sizes(text: str | None, problems: list[Problem]) -> tuple[Size, ...]:
    """The value of `--sizes`; what is wrong with it joins `problems`."""
    sizes = []
    for each in [] if text is None else text.split(","):
        found = re.fullmatch(r"(\d+)x(\d+)x(\d+)", each)
        if found is None:
            problems.append(Problem("--sizes", each, "must be WIDTHxHEIGHTxFRAMES, several with commas between them"))
        else:
            sizes.append(Size(*map(int, found.groups())))
    return tuple(sizes)


def _unknown(option: str, value: str, known: Sequence[str]) -> Problem:
    return Problem(option, value, f"must be one of {', '.join(known)}{did_you_mean(value, known)}")
