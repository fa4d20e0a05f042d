"""Commands that take a recipe: Hydra composes it from the words, after what is wrong with them was told."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ltxgen.cli.commands import COMMANDS, RECIPE_COMMANDS
from ltxgen.cli.outcome import guarded
from ltxgen.config.errors import MISSING, Problem, Refusal, first_line

if TYPE_CHECKING:
    from ltxgen.config.launcher import SweepJob

Result = TypeVar("Result")
Use = Callable[[dict[str, Any]], float | None]
RunComposed = Callable[["Sequence[SweepJob]"], Sequence[float | None]]
OwnFolder = Callable[[Path], AbstractContextManager[Path]]

# Flags of Hydra's own that show something and run nothing.
_SHOWING_FLAGS = (
    "--help",
    "-h",
    "--hydra-help",
    "--cfg",
    "-c",
    "--info",
    "-i",
)
_COMPLETION_FLAGS = ("--shell-completion", "-sc")


def with_recipe(
    use: Use,
    words: list[str],
    debug: bool,
    run_jobs: RunComposed | None = None,
    rows: Sequence[Sequence[str]] | None = None,
    own_folder: OwnFolder = nullcontext,
) -> int | None:
    """Compose the recipe and call `use` with it, or, in a sweep, `run_jobs` with all jobs; without it, `use` with each.
    With `rows` there are as many jobs for each, with its overrides. A sweep of others' plugins goes into what
    `own_folder` gives for its folder.

    Hydra's application is for what only it has: sweeps, its flags and its own settings. It composes everything three
    times, which `ltxgen plan` and `run` would wait for.
    """
    from ltxgen.config import compose

    compose.refuse_bad_flags(words)
    completes = any(word in _COMPLETION_FLAGS for word in words)
    if completes:  # their words are Hydra's own: install=bash
        _complete_commands(words)
        _hide_command_from_completion()
    else:
        words = compose.name_recipe_paths(compose.open_overrides(words))
        shows = any(word in _SHOWING_FLAGS for word in words)
        if not compose.is_sweep(words) or shows or compose.has_other_plugins(words):
            configs = _composed_or_refused(words)
            if compose.is_plain(words):
                use(configs[0])
                return 0
        else:
            compose.jobs_of_sweep([word for word in words if not word.startswith("-")])  # or refused

    def composed(jobs: Callable[[], Sequence[SweepJob]]) -> Sequence[SweepJob]:
        try:
            return jobs()
        except compose.COMPOSITION_ERRORS:
            _composed_or_refused(words)
            raise

    def or_exit(run: Callable[[], Result]) -> Result:
        results: list[Result] = []
        code = guarded(lambda: results.append(run()), debug)
        if code:
            sys.exit(code)  # past Hydra, which would print a traceback
        return results[0]

    def job(config: dict[str, Any]) -> float | None:
        return or_exit(lambda: use(config))

    def run_all(jobs: Callable[[], Sequence[SweepJob]]) -> Sequence[float | None]:
        if run_jobs is not None:
            return or_exit(lambda: run_jobs(composed(jobs)))
        return [job(dict(each.config)) for each in or_exit(lambda: composed(jobs))]

    try:
        compose.hydra_app(job, run_all, words, rows, own_folder)
    except compose.COMPOSITION_ERRORS as error:
        if not completes:  # in what the jobs of a sweep have in common
            _composed_or_refused(words)
        raise Refusal([Problem("command line", MISSING, first_line(error))]) from error
    return 0


def _complete_commands(words: Sequence[str]) -> None:
    """Commands for a line that is only their beginning; Hydra adds groups and keys, of which it knows."""
    begun = re.fullmatch(r"\S+\s+([a-z]*)", os.environ.get("COMP_LINE", ""))
    if begun and any(word.startswith("query=") for word in words):
        print(*(name for name in COMMANDS if name.startswith(begun[1])))


def _hide_command_from_completion() -> None:
    """Hydra completes overrides of the line that the shell hands over, and knows no `plan` in front of them."""
    line = os.environ.get("COMP_LINE", "")
    command = re.match(rf"\S+\s+(({'|'.join(RECIPE_COMMANDS)})\s+)", line)
    if command:
        os.environ["COMP_LINE"] = line[: command.start(1)] + line[command.end(1) :]
        os.environ["COMP_POINT"] = str(len(os.environ["COMP_LINE"]))


def _composed_or_refused(words: Sequence[str]) -> list[dict[str, Any]]:
    """Every job's config. What Hydra can't apply is refused together with what the rest holds wrong.

    Where a config is only shown, its values may be wrong.
    """
    from ltxgen.config import compose
    from ltxgen.config.recipe import parse_recipe

    shows = any(word in _SHOWING_FLAGS for word in words)
    # A flag that shows takes a word of its own: `--cfg job`.
    overrides = [word for word in words if not word.startswith("-") and ("=" in word or not shows)]
    problems: list[Problem] = []
    configs = []
    for job in _jobs(overrides) if compose.is_sweep(words) else [overrides]:
        try:
            config = compose.compose_config(job)
        except compose.CompositionRefusal as refusal:
            problems += refusal.problems
            config = refusal.data
        configs.append(config)
        try:
            if not shows:
                parse_recipe(config)
        except Refusal as refusal:
            unknown_recipe = any(problem.path == "recipe" for problem in problems)
            problems += [each for each in refusal.problems if not (unknown_recipe and each.path == "stages")]
    if problems:
        raise Refusal(problems)
    return configs


def _jobs(overrides: Sequence[str]) -> list[list[str]]:
    """The jobs that are known beforehand; of a sweeper that chooses them as it goes, what all have in common."""
    from ltxgen.config import compose

    by_other = compose.has_other_plugins(overrides, "sweeper")
    return [compose.fixed_words(overrides)] if by_other else compose.jobs_of_sweep(overrides)
