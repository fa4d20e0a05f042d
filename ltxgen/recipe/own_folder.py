"""An output folder of its own for every run: by default it has the name of a second, and two runs may start in one."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ltxgen.parallel.ending import discarded_unless_done
from ltxgen.runtime.clock import process_start

FORMAT = "%Y-%m-%d_%H-%M-%S"  # as conf/output names them


@contextlib.contextmanager
def own_folder(output: Path) -> Iterator[Path]:
    """`output` as it is, unless it has the name of a second in which this process ran, as no user would type it: then
    it is made here, or where another run was faster NAME_2, NAME_3, ..., and is this run's alone.

    What was made goes again when the block raises and has left nothing in it. Where nothing can be made `output` is
    given as it is: a plan says what is wrong with it.
    """
    if not _is_of_this_process(output.name):
        yield output
        return
    missing = [folder for folder in output.parents if not folder.exists()]
    names = itertools.chain([output], (output.with_name(f"{output.name}_{number}") for number in itertools.count(2)))

    def discard() -> None:
        with contextlib.suppress(OSError):  # something is in it, and so in those above
            for folder in (made, *missing):
                folder.rmdir()

    try:
        made = next(folder for folder in names if _make(folder))
    except OSError:
        yield output
        return
    with discarded_unless_done(discard):
        yield made


@contextlib.contextmanager
def with_own_folder(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """`config` with the output folder that is the run's own while the block runs."""
    with own_folder(Path(config["output"]["dir"]).expanduser()) as folder:
        yield moved(config, folder)


def moved(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """`config` with another output folder."""
    return {**config, "output": {**config["output"], "dir": str(folder)}}


def _make(folder: Path) -> bool:
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir()  # one of several processes succeeds
    except FileExistsError:
        return False
    return True


def _is_of_this_process(name: str) -> bool:
    try:
        named = datetime.datetime.strptime(name, FORMAT)
    except ValueError:
        return False
    age = datetime.datetime.now() - named
    return datetime.timedelta(0) <= age <= datetime.timedelta(seconds=time.perf_counter() - process_start() + 1)
