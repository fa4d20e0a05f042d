"""Runs a composed recipe: in this process, on ranks that it starts, or as one of those that accelerate started."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ltxgen.config.errors import Problem, Refusal
from ltxgen.config.recipe import Recipe, parse_recipe
from ltxgen.parallel.ending import discarded_unless_done, exit_on_signals, is_rank, world_size
from ltxgen.parallel.launch import agree, check_world_size, freeze, launch, thaw
from ltxgen.recipe.own_folder import moved, with_own_folder
from ltxgen.recipe.plan import Plan, make_plan
from ltxgen.recipe.resume import interrupted
from ltxgen.recipe.run import NO_FOLDER, output_folder, run_into, run_plan
from ltxgen.runtime.clock import Began
from ltxgen.runtime.displays import create_progress
from ltxgen.runtime.progress import Progress
from ltxgen.runtime.ranks import ONE_PROCESS, Ranks, start_ranks


def run_config(config: Mapping[str, Any], words: tuple[str, ...] = (), *, continues: bool = False) -> Path | None:
    """Run the recipe; returns the output folder, or None on a rank that has none.

    `words` are flags for the ranks that this process starts. With `continues`, an interrupted run into the same folder
    goes on.
    """
    parallel = parse_recipe(config).parallel
    writes = os.environ["RANK"] == "0" if is_rank() else parallel.machine_rank == 0
    with with_own_folder(config) if writes and not continues else nullcontext(config) as own:
        return _run_config(own, words, continues)


def _run_config(config: Mapping[str, Any], words: tuple[str, ...], continues: bool) -> Path | None:
    recipe = parse_recipe(config)
    if is_rank():
        check_world_size(recipe.parallel.num_processes, world_size())
        return _run_among(start_ranks(), config, continues)
    if recipe.parallel.kind == "jobs" and (recipe.parallel.num_processes or 1) > 1:
        raise Refusal([Problem("parallel", "jobs", "is for sweeps: add -m, or take another choice of parallel")])
    if (recipe.parallel.num_processes or 1) > 1:
        return _launch(recipe, config, words, continues)
    return _run_among(ONE_PROCESS, config, continues)


def _run_among(ranks: Ranks, config: Mapping[str, Any], continues: bool) -> Path | None:
    """Run as one of ranks that each composed `config`."""
    agreed = agree(config, ranks.world_size, ranks.gather) if ranks.world_size > 1 else config
    began = Began.now()
    with _progress(ranks) as progress:
        plan = _plan(agreed, ranks, progress)
        folder = run_plan(plan, agreed, progress, ranks, continues=continues, began=began)
    return folder if ranks.is_main else None


def run_as_rank(frozen: Path, sha256: str, folder: Path) -> None:
    """Run as one of the ranks that `_launch` started; the first one fills `folder`."""
    config = thaw(frozen, sha256)
    ranks = start_ranks()
    agreed = agree(config, ranks.world_size, ranks.gather)
    began = Began.now()
    # The launching process discards the folder as well, unless it was killed.
    discard = functools.partial(shutil.rmtree, folder, ignore_errors=True)
    with discarded_unless_done(discard) if ranks.is_main else nullcontext(), _progress(ranks) as progress:
        plan = _plan(agreed, ranks, progress)
        run_into(folder if ranks.is_main else NO_FOLDER, plan, agreed, progress, ranks, began=began)


def _launch(recipe: Recipe, config: Mapping[str, Any], words: tuple[str, ...], continues: bool) -> Path | None:
    """Refuse what can be refused, then start the ranks. The output folder is made and completed here, by the process
    that outlives them all."""
    with create_progress() as progress:
        make_plan(recipe, progress.note).require()
    output = Path(recipe.output.dir).expanduser().absolute()
    config = moved(config, output)
    is_main = recipe.parallel.machine_rank == 0
    with (
        exit_on_signals(),
        tempfile.TemporaryDirectory(prefix="ltxgen-") as scratch,
        output_folder(output, config, _told, continues) if is_main else nullcontext(NO_FOLDER) as folder,
    ):
        frozen, logs = Path(scratch) / "config.json", Path(scratch) / "logs"
        sha256 = freeze(config, frozen)
        launch(recipe.parallel, ["rank", str(frozen), sha256, str(folder), *words], logs)
    return output if is_main else None


def _plan(config: Mapping[str, Any], ranks: Ranks, progress: Progress) -> Plan:
    plan = make_plan(parse_recipe(config), progress.note, ranks.local_rank)
    if not ranks.is_main:  # its machine need not have the folder that the first rank writes
        plan = dataclasses.replace(plan, problems=[each for each in plan.problems if each.path != "output.dir"])
    for note in plan.require().notes:
        progress.note(note)
    return plan


def _told(note: str) -> None:
    """Before the ranks speak."""
    with create_progress() as progress:
        progress.note(note)


def _progress(ranks: Ranks) -> Progress:
    return create_progress("auto" if ranks.is_main else "quiet")


def resume(folder: Path, words: tuple[str, ...] = ()) -> Path | None:
    """Go on with the interrupted run into `folder`; returns it once it is whole, which it may be already.

    Raises Refusal where there is no run to go on with, or one is still going on.
    """
    output = folder.expanduser().absolute()
    left = interrupted(output)
    if left is None:
        return output
    if left.started_in.is_dir():
        os.chdir(left.started_in)  # where the config's relative paths start
    return run_config(moved(left.config, output), words, continues=True)
