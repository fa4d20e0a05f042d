"""Runs the jobs of a sweep: all planned before the first one, ordered by what must be loaded, on one process or many.

Each launch of ranks serves all jobs that want the same ones. With `parallel=jobs` every rank is a run of its own, and
takes a job whenever it has none.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from ltxgen.config.errors import JobsFailed, Problem, Refusal
from ltxgen.config.recipe import parse_recipe
from ltxgen.media.gallery import write_gallery
from ltxgen.parallel.ending import RankFailure, exit_on_signals, is_rank
from ltxgen.parallel.launch import agree, check_world_size, freeze, launch, thaw
from ltxgen.recipe.own_folder import moved, own_folder
from ltxgen.recipe.plan import Plan
from ltxgen.recipe.run import run_plan
from ltxgen.recipe.session import Session
from ltxgen.recipe.sweep_folder import Job, SweepFolder, failed_message
from ltxgen.recipe.sweep_jobs import JOBS, PlannedJob, ordered, plan_jobs, require_space
from ltxgen.runtime.displays import create_progress
from ltxgen.runtime.progress import Progress, SweepProgress
from ltxgen.runtime.ranks import ONE_PROCESS, Ranks, start_ranks


class Sweep:
    """Takes the jobs of a sweep, in one batch or several, and keeps components loaded between all of them.

    `debug` shows where a failed job failed.
    """

    def __init__(self, debug: bool = False) -> None:
        self._debug = debug
        self._continues = False
        self._session = Session()
        self._own: Path | None = None
        self._folder: SweepFolder | None = None

    @contextmanager
    def own_folder(self, output: Path) -> Iterator[Path]:
        """The folder of all batches inside the block, `output` or beside it, where it must be known before them."""
        is_main = not is_rank() or os.environ["RANK"] == "0"
        with own_folder(output) if is_main else nullcontext(output) as self._own:
            yield self._own

    def run(self, jobs: Sequence[Job]) -> list[Path]:
        """Run `jobs`, into numbered folders of one folder that the first batch begins anew; returns theirs, in order.

        Raises Refusal, before anything runs, with all that is wrong with any of them, and JobsFailed at the end when
        some failed.
        """
        if is_rank():
            return self._run_as_ranks(jobs)
        with self._place(jobs) as place:
            jobs = _moved(jobs, place)
            planned = plan_jobs(jobs)
            folder, anew = SweepFolder(place), self._folder is None
            if not _writes(jobs):
                self._run(folder, planned)
                return []
            require_space(folder, planned)
            with folder.alone():
                folder.begin(jobs, anew=anew)
                self._folder = folder
                self._run(folder, planned)
        return _finished(folder, jobs)

    def _place(self, jobs: Sequence[Job]) -> AbstractContextManager[Path]:
        """The folder of all batches."""
        if self._folder is not None:
            return nullcontext(self._folder.path)
        if self._own is not None:
            return nullcontext(self._own)
        return own_folder(_folder_of(jobs)) if _writes(jobs) else nullcontext(_folder_of(jobs))

    def resume(self, path: Path) -> list[Path]:
        """Run the jobs of the sweep in `path` that failed or were not reached, as they were composed, and those whose
        folder isn't whole; one that was interrupted goes on. Returns the folders of all."""
        self._continues = True
        self._folder = folder = SweepFolder(path)
        _ = folder.record  # or refused, before anything is made there
        with folder.alone():
            planned = plan_jobs(folder.unfinished())
            require_space(folder, planned)
            folder.reopen(planned)
            self._run(folder, planned)
        return _finished(folder, planned, everything=True)

    def close(self) -> None:
        self._session.close()

    def _run(self, folder: SweepFolder, planned: Sequence[PlannedJob]) -> None:
        for _, group in itertools.groupby(ordered(planned), key=lambda job: job.launched_alike):
            alike = list(group)
            if (alike[0].parallel.num_processes or 1) > 1:
                self._session.close()  # the ranks need the memory
                _launch(folder, alike, self._debug, self._continues)
            else:
                with create_progress() as progress:
                    walk = Walk(folder, self._session, progress, debug=self._debug, continues=self._continues)
                    _walk(walk, alike)

    def _run_as_ranks(self, jobs: Sequence[Job]) -> list[Path]:
        """As one of the ranks that accelerate started by hand, each of which composed all jobs."""
        parallel = parse_recipe(jobs[0].config).parallel
        if parallel.kind == JOBS:
            raise Refusal([Problem("parallel", JOBS, "starts its processes itself; leave out `accelerate launch`")])
        ranks = start_ranks()
        check_world_size(parallel.num_processes, ranks.world_size)
        with self._place(jobs) if ranks.is_main else nullcontext(_folder_of(jobs)) as place:
            planned = _agreed(_moved(jobs, place), ranks)
            folder = SweepFolder(_folder_of(planned))
            if ranks.is_main:
                require_space(folder, planned)
                folder.begin(planned, anew=self._folder is None)
            self._folder = folder
            with _progress(ranks) as progress:
                _walk(Walk(folder, self._session, progress, ranks, self._debug), ordered(planned))
        return _finished(folder, jobs) if ranks.is_main else []


def resume_sweep(path: Path, debug: bool = False) -> list[Path]:
    """Finish the interrupted sweep in the folder `path`; returns the folders of all its jobs.

    Raises as `Sweep.run`.
    """
    sweep = Sweep(debug)
    try:
        return sweep.resume(path)
    finally:
        sweep.close()


@dataclass(frozen=True)
class Walk:
    """What a process needs to run jobs one after another. `claim`, where several do, says whether a job is its own;
    with `continues`, jobs that were interrupted go on where they were."""

    folder: SweepFolder
    session: Session
    progress: Progress
    ranks: Ranks = ONE_PROCESS
    debug: bool = False
    continues: bool = False
    claim: Callable[[int], bool] = lambda number: True
    num_workers: int = 1


def _walk(walk: Walk, jobs: Sequence[PlannedJob]) -> None:
    """Run jobs in this order. One that fails is noted; among ranks, it ends them all."""
    for position, job in enumerate(jobs):
        if not walk.claim(job.number):
            continue
        if walk.ranks.is_main:
            _announce(walk, job)
        # What a next batch will want is not known: the same.
        coming = [later.plan for later in jobs[position + 1 :]] or [job.plan]
        before, started = walk.session.loads.copy(), time.perf_counter()
        error = _run_one(walk, job, coming)
        loads = walk.session.loads - before
        if error is not None:
            walk.session.close()
            walk.folder.failed(job.number, error, loads)
            walk.progress.note(f"job {job.number} failed: {error}")
        elif walk.ranks.is_main:
            walk.folder.done(job.number, time.perf_counter() - started, loads)


def _run_one(walk: Walk, job: PlannedJob, coming: Sequence[Plan]) -> str | None:
    """Run a job; returns what it failed with. Its error, with all that hangs on it, is gone by then."""
    try:
        parts = walk.session.parts(job.plan, coming, walk.progress.note)
        run_plan(job.plan, job.config, walk.progress, walk.ranks, parts, continues=walk.continues)
    except Exception as error:
        if walk.ranks.world_size > 1:
            raise  # the others wait for this rank
        if walk.debug:
            walk.progress.note(traceback.format_exc())
        return str(error) if isinstance(error, Refusal) else f"{type(error).__name__}: {error}"
    return None


def _announce(walk: Walk, job: PlannedJob) -> None:
    entries = walk.folder.record["jobs"]
    ended = [entry for entry in entries if entry["status"] != "pending"]
    seconds = [entry["seconds"] for entry in ended if "seconds" in entry]
    changing = [word for word in job.overrides if any(word not in entry["overrides"] for entry in entries)]
    name = f"{job.number} ({', '.join(changing)})" if changing else str(job.number)
    walk.progress.job(SweepProgress(name, len(entries), len(ended), seconds, walk.num_workers))


def _launch(folder: SweepFolder, jobs: Sequence[PlannedJob], debug: bool, continues: bool) -> None:
    """Run jobs on ranks, all in one launch. When one breaks it, the others get another."""
    parallel = jobs[0].parallel
    writes = _writes(jobs)
    left = list(jobs)
    while left:
        with exit_on_signals(), tempfile.TemporaryDirectory(prefix="ltxgen-") as scratch:
            frozen, claims = Path(scratch) / "jobs.json", Path(scratch) / "claims"
            claims.mkdir()
            stored = [{"number": job.number, "overrides": job.overrides, "config": job.config} for job in left]
            kept = {"folder": str(folder.path.absolute()), "jobs": stored, "continues": continues}
            sha256 = freeze(kept, frozen)
            words = ["sweep-rank", str(frozen), sha256, str(claims), *(["--debug"] if debug else [])]
            try:
                launch(parallel, words, Path(scratch) / "logs")
                return
            except RankFailure as failure:
                if failure.code != 1 or not writes:  # refused, or told to end
                    raise
                broken = _broken(left, claims, failure.rank, folder.jobs())
                folder.failed(broken.number, str(failure) or failure.told)
        statuses = folder.jobs()
        left = [job for job in left if statuses[job.number] == "pending"]


def _broken(jobs: Sequence[PlannedJob], claims: Path, rank: int | None, statuses: Mapping[int, str]) -> PlannedJob:
    """The job in which `rank` failed: the last that it claimed, or where all ranks share them the first pending one."""
    pending = [job for job in jobs if statuses[job.number] == "pending"]
    claimed = [job for job in pending if _claimant(claims, job.number) == rank]
    return (claimed or pending)[0]


def _claimant(claims: Path, number: int) -> int | None:
    file = claims / str(number)
    return int(file.readlink().name) if file.is_symlink() else None


def _claim(claims: Path, number: int) -> bool:
    """Take a job unless another rank has it. A link is made with its content, as a file is not."""
    try:
        (claims / str(number)).symlink_to(os.environ["RANK"])
    except FileExistsError:
        return False
    return True


def run_as_sweep_rank(frozen: Path, sha256: str, claims: Path, debug: bool = False) -> None:
    """Run as one of the ranks that `_launch` started."""
    stored = thaw(frozen, sha256)
    jobs = [Job(each["number"], each["overrides"], each["config"]) for each in stored["jobs"]]
    folder, session, continues = SweepFolder(Path(stored["folder"])), Session(), stored["continues"]
    if jobs[0].config["parallel"]["kind"] == JOBS:
        local_rank, num_workers = int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])
        alone = Ranks(rank=0, world_size=1, local_rank=local_rank)
        planned = plan_jobs(jobs, alone)
        with create_progress("auto" if local_rank == 0 else "quiet") as progress, session:
            claim = lambda number: _claim(claims, number)  # noqa: E731
            _walk(Walk(folder, session, progress, alone, debug, continues, claim, num_workers), planned)
        return
    ranks = start_ranks()
    with _progress(ranks) as progress, session:
        _walk(Walk(folder, session, progress, ranks, debug, continues), _agreed(jobs, ranks))


def _agreed(jobs: Sequence[Job], ranks: Ranks) -> list[PlannedJob]:
    """The jobs as all ranks have them, planned."""
    configs = [agree(job.config, ranks.world_size, ranks.gather) for job in jobs]
    agreed = [Job(job.number, job.overrides, config) for job, config in zip(jobs, configs, strict=True)]
    return plan_jobs(agreed, ranks)


def _progress(ranks: Ranks) -> Progress:
    return create_progress("auto" if ranks.is_main else "quiet")


def _writes(jobs: Sequence[Job]) -> bool:
    """Whether the output is this machine's."""
    return not any(job.config["parallel"].get("machine_rank") for job in jobs)


def _folder_of(jobs: Sequence[Job]) -> Path:
    return Path(jobs[0].config["output"]["dir"]).expanduser().parent


def _moved(jobs: Sequence[Job], place: Path) -> list[Job]:
    """The jobs of a sweep in the folder `place`."""
    return [dataclasses.replace(job, config=moved(job.config, place / str(job.number))) for job in jobs]


def _finished(folder: SweepFolder, jobs: Sequence[Job], everything: bool = False) -> list[Path]:
    """The folders of `jobs`, with a page that shows the sweep; JobsFailed when some have none."""
    write_gallery(folder.path)
    numbers = sorted(folder.jobs()) if everything else [job.number for job in jobs]
    if errors := {number: error for number, error in folder.errors().items() if number in numbers}:
        raise JobsFailed(failed_message(errors, folder.path))
    return [folder.path / str(number) for number in numbers]
