"""The words of the command line: as Hydra wants them, and what can be told of a sweep from them alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from ltxgen.config.errors import MISSING, Problem, Refusal, first_line


def is_sweep(words: Sequence[str]) -> bool:
    """Whether Hydra is asked for a sweep."""
    return any(word in ("--multirun", "-m") for word in words)


def is_plain(words: Sequence[str]) -> bool:
    """Whether words are overrides of the recipe alone: no flags, and no settings of Hydra's own."""
    return not any(re.match(r"-|[+~]*hydra\b", word) for word in words)


def open_overrides(words: Sequence[str]) -> list[str]:
    """Words as Hydra wants them.

    `recipe=NAME`, `stages.S.loras.NAME=...` and `artifacts.loras.NAME...=...` do without Hydra's `+`. Prompts and paths
    are taken as they stand, with commas, brackets and quotes; in a sweep they follow Hydra's grammar, where a comma
    separates.
    """
    words = ["+" + word if word.startswith("recipe=") else word for word in words]
    opened = ["++" + word if re.match(r"(stages\.\w+|artifacts)\.loras\.\w", word) else word for word in words]
    return opened if is_sweep(words) else [_quoted(word) for word in opened]


def written_word(word: str) -> str:
    """An override of `open_overrides` as it was given."""
    return re.sub(r"^\+\+(?=(stages\.\w+|artifacts)\.loras\.\w)", "", word)


_TEXT_KEY = re.compile(r"\+*(request\.(negative_)?prompt|output\.dir|cache\.folder|artifacts\.[\w.]+\.path)")
_QUOTED = re.compile(r"""'(\\.|[^'\\])*'|"(\\.|[^"\\])*\"""", re.DOTALL)


def _quoted(word: str) -> str:
    """A text's override with Hydra's quotes around the value, unless it has them or is null where that means none."""
    key, separator, value = word.partition("=")
    is_null = value == "null" and not key.endswith("request.prompt")
    if not separator or not _TEXT_KEY.fullmatch(key) or is_null or _QUOTED.fullmatch(value):
        return word
    return f"{key}={in_quotes(value)}"


def in_quotes(text: str) -> str:
    """A text in Hydra's grammar."""
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text)
    return f"'{escaped}'"


def jobs_of_sweep(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of every job of a sweep; `Refusal` for one that does not parse."""
    problems, parser = [], OverridesParser.create()
    for word in overrides:
        try:
            parser.parse_override(word)
        except HydraException as error:
            problems.append(unreadable(word, error))
    if problems:
        raise Refusal(problems)
    try:
        batches = BasicSweeper.split_arguments(parser.parse_overrides(list(overrides)), None)
    except HydraException as error:
        raise Refusal([Problem("command line", MISSING, first_line(error))]) from error
    return [list(job) for batch in batches for job in batch]


def unreadable(word: str, error: Exception) -> Problem:
    """An override that Hydra's grammar doesn't have."""
    key, separator, value = word.partition("=")
    if not separator or not key.lstrip("+~"):
        return Problem("command line", word, "an override reads key=value; see `ltxgen --help`")
    fault = first_line(error).partition(" expecting ")[0]  # the names of all tokens that could stand there
    message = f"can't be read ({fault}); write numbers, words, [lists] or {{mappings}}"
    return Problem(key.lstrip("+~"), value, f"""{message}, and "'...'" around a text with other signs""")


def has_other_plugins(words: Sequence[str], groups: str = "launcher|sweeper") -> bool:
    """Whether a launcher or sweeper is asked for that isn't the default."""
    return any(re.match(rf"hydra/({groups})=(?!ltxgen$)", word) for word in words)


def fixed_words(words: Sequence[str]) -> list[str]:
    """The overrides that are the same for all jobs of a sweep."""
    overrides = [word for word in words if not word.startswith("-")]
    parsed = OverridesParser.create().parse_overrides(overrides)
    return [word for word, override in zip(overrides, parsed, strict=True) if not override.is_sweep_override()]
