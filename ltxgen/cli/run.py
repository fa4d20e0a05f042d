"""`ltxgen run`, or no command at all: a run, a sweep, a job for each row of a file."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltxgen.cli.composed import OwnFolder, RunComposed, with_recipe
from ltxgen.cli.output import print_page, print_results
from ltxgen.config.errors import Problem, Refusal

if TYPE_CHECKING:
    from ltxgen.config.launcher import SweepJob


def command(words: list[str], debug: bool) -> int | None:
    from ltxgen.config import compose

    run = functools.partial(_run, debug=debug)
    rows, words = _requests(words)
    if not compose.is_sweep(words):
        return with_recipe(run, words, debug)
    with _sweeping(debug) as (run_jobs, own_folder):
        return with_recipe(run, words, debug, run_jobs, rows, own_folder)


def _requests(words: list[str]) -> tuple[list[list[str]] | None, list[str]]:
    """The overrides of each request in the file of `requests=FILE`, and the words that are left, now a sweep's."""
    from ltxgen.config import compose
    from ltxgen.config.requests import read_requests

    given = {key: value for key, separator, value in (word.partition("=") for word in words) if separator}
    if "requests" not in given:
        if mode := given.get("requests.mode"):
            raise Refusal([Problem("requests.mode", mode, "says how the rows of a file combine; add requests=FILE")])
        return None, words
    if compose.has_other_plugins(words, "sweeper"):
        message = "its rows are the jobs; leave out the sweeper, or the file"
        raise Refusal([Problem("requests", given["requests"], message)])
    rows = read_requests(Path(given["requests"]).expanduser(), given.get("requests.mode", "zip"))
    rest = [word for word in words if word.partition("=")[0] not in ("requests", "requests.mode")]
    return rows, rest if compose.is_sweep(rest) else ["-m", *compose.open_overrides(rest)]


def _run(config: Mapping[str, Any], debug: bool = False) -> float | None:
    from ltxgen.recipe.launch import run_config

    folder = run_config(config, ("--debug",) if debug else ())
    return None if folder is None else print_results(folder, config)


@contextmanager
def _sweeping(debug: bool) -> Iterator[tuple[RunComposed, OwnFolder]]:
    """Runs the jobs of a sweep, batch after batch, with what stays loaded between them; and gives it a folder before
    the first one, where one is wanted then."""
    from ltxgen.config import compose
    from ltxgen.recipe.sweep import Sweep
    from ltxgen.recipe.sweep_folder import Job

    sweep = Sweep(debug)

    def run_jobs(jobs: Sequence[SweepJob]) -> Sequence[float | None]:
        written = [tuple(map(compose.written_word, each.overrides)) for each in jobs]
        folders = sweep.run([Job(each.number, words, each.config) for each, words in zip(jobs, written, strict=True)])
        if not folders:
            return [None] * len(jobs)  # a rank, or a machine, that writes nothing
        shown = [print_results(folder, job.config) for folder, job in zip(folders, jobs, strict=True)]
        print_page(folders[0].parent)
        return shown

    try:
        yield run_jobs, sweep.own_folder
    finally:
        sweep.close()
