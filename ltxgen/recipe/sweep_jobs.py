"""The jobs of a sweep as they would run: planned, with room for all on the disk, ordered by what must be loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from ltxgen.config.errors import Problem, Refusal
from ltxgen.config.recipe import parse_recipe
from ltxgen.media.files import check_free_space
from ltxgen.parallel.ending import is_rank
from ltxgen.parallel.launch import LaunchConfig
from ltxgen.recipe.plan import Plan, make_plan
from ltxgen.recipe.problems import output_bytes
from ltxgen.recipe.session import part_key
from ltxgen.recipe.sweep_folder import Job, SweepFolder
from ltxgen.runtime.displays import create_progress
from ltxgen.runtime.ranks import ONE_PROCESS, Ranks
from ltxgen.stage.protocol import PartRequest

JOBS = "jobs"  # the kind of `parallel` with which each rank runs jobs of its own


@dataclass(frozen=True)
class PlannedJob(Job):
    """A job and what would run."""

    plan: Plan

    @property
    def parallel(self) -> LaunchConfig:
        config: LaunchConfig = self.plan.recipe.parallel
        return config

    @property
    def launched_alike(self) -> tuple[object, ...]:
        """What jobs have in common that one launch can serve."""
        each_its_own = self.plan.recipe.parallel.kind == JOBS
        return each_its_own, *(getattr(self.parallel, field.name) for field in fields(LaunchConfig))


def plan_jobs(jobs: Sequence[Job], ranks: Ranks = ONE_PROCESS) -> list[PlannedJob]:
    """Plan every job; Refusal with the problems of all of them."""
    problems: list[Problem] = []
    planned = []
    with create_progress("quiet" if is_rank() else "auto") as progress:
        for job in jobs:
            try:
                plan = make_plan(parse_recipe(job.config), progress.note, ranks.local_rank)
                if not ranks.is_main:  # its machine need not have the folder that the first rank writes
                    others = [problem for problem in plan.problems if problem.path != "output.dir"]
                    plan = dataclasses.replace(plan, problems=others)
                plan.require()
            except Refusal as refusal:
                problems += refusal.problems
                continue
            planned.append(PlannedJob(job.number, job.overrides, job.config, plan))
        for note in dict.fromkeys(note for job in planned for note in job.plan.notes):
            progress.note(note)
    if problems:
        raise Refusal(problems)
    return planned


def require_space(folder: SweepFolder, jobs: Sequence[PlannedJob]) -> None:
    """Refusal where the disk has room for each of the jobs, but not for all of them."""
    wrong = check_free_space(folder.path, sum(output_bytes(job.plan.recipe) for job in jobs))
    if wrong:
        raise Refusal([Problem("output.dir", str(folder.path), f"for {len(jobs)} jobs, {wrong}")])


def ordered(jobs: Sequence[PlannedJob]) -> list[PlannedJob]:
    """Jobs such that those that share what is loaded stand together: processes, then components from the largest, then
    LoRAs. Else as they are numbered."""
    names = dict.fromkeys(request.name for job in jobs for request in _requests(job.plan))
    largest_first = sorted(names, key=lambda name: -max(_size(job.plan, name) for job in jobs))
    traits: list[Callable[[PlannedJob], object]] = [
        lambda job: job.launched_alike,
        *(lambda job, name=name: part_key(job.plan, name) for name in largest_first),  # type: ignore[misc]
        lambda job: [request.loras for request in _requests(job.plan)],
    ]
    columns = [_in_order_of_appearance([trait(job) for job in jobs]) for trait in traits]
    return [job for _, job in sorted(zip(zip(*columns, strict=True), jobs, strict=True), key=lambda row: row[0])]


def _in_order_of_appearance(values: Sequence[object]) -> list[int]:
    """A number for each value: equal ones have the same."""
    seen: list[object] = []
    for value in values:
        if value not in seen:
            seen.append(value)
    return [seen.index(value) for value in values]


def _requests(plan: Plan) -> list[PartRequest]:
    return [request for stage in plan.stages.values() for request in stage.parts]


def _size(plan: Plan, name: str) -> int:
    return plan.memory.at_rest(name).device if plan.memory else 0
