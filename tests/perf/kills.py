"""Kills runs and sweeps of the embedded model at random moments, resumes them, and compares with undisturbed ones.

    PYTHONPATH=. python tests/perf/kills.py [KILLS [SEED]]

Each of the KILLS hits a run, and as many a sweep, in a process that is forked off this one, which has imported
everything that a run needs. A table of where each was hit; exit code 1 if a result differs or anything is left behind.
"""

from __future__ import annotations

import collections
import io
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import psutil
import torch
from hydra.core.global_hydra import GlobalHydra

from ltxgen import cli
from ltxgen.config.compose import RecipesByPath
from ltxgen.recipe.executor import StageExecutor
from ltxgen.recipe.store import Store

RUN = (
    *("+recipe=ltx23_two_stage", "model=ltx23_tiny", "request.height=64", "request.width=64", "request.num_frames=9"),
    *("stages.base.steps=6", "stages.base.checkpoint_every=1", "stages.refine.checkpoint_every=1"),
    "stages.write.crf=0",  # lossless: the last bit of a latent can show in the video
)
SWEEP = ("-m", *RUN, "stages.refine.loras.distilled=0.5,1.0", "request.seed=1,2")
FILES = ("contact_sheet.png", "video.mp4")
STARTING = "before a stage"


class Whereabouts:
    """What a child was doing last, in memory that it shares with its parent."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 64)
        self.at(STARTING)

    def at(self, place: str) -> None:
        self._memory[:] = place.encode().ljust(64)

    def __str__(self) -> str:
        return self._memory[:].decode().strip()

    def follow_stages(self) -> None:
        run_stage = StageExecutor._run_stage

        def followed(executor: StageExecutor, name: str, *arguments: object) -> None:
            self.at(name)
            run_stage(executor, name, *arguments)  # type: ignore[arg-type]
            self.at("between stages")

        StageExecutor._run_stage = followed  # type: ignore[method-assign]


def begin(folder: Path, *words: str) -> int:
    """`ltxgen WORDS` in a process of its own, in `folder`; returns the process's number."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        code = here(folder, *words)
    finally:
        os._exit(code)


def here(folder: Path, *words: str) -> int:
    """`ltxgen WORDS` in this process; returns the exit code."""
    os.chdir(folder)
    GlobalHydra.instance().clear()
    RecipesByPath.instance().files.clear()
    with redirect_stdout(io.StringIO()), open(folder / "log", "w") as log, redirect_stderr(log):
        try:
            cli.main(list(words))
        except SystemExit as end:
            return int(end.code or 0)
    return 99


def run(folder: Path, *words: str) -> float:
    """Run to the end; returns the seconds of CPU time that it took."""
    _, status, used = os.wait4(begin(folder, *words), 0)
    code = os.waitstatus_to_exitcode(status)
    if code:
        sys.exit(f"ltxgen {' '.join(words)}: exit code {code}\n{(folder / 'log').read_text()}")
    return used.ru_utime + used.ru_stime


def kill(folder: Path, seconds: float, *words: str) -> bool:
    """Begin, and kill once it has used so many seconds of CPU time; returns whether it was still at it."""
    child = begin(folder, *words)
    while _cpu_seconds(child) < seconds and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status) and os.waitstatus_to_exitcode(status):
        sys.exit(f"ltxgen {' '.join(words)} failed\n{(folder / 'log').read_text()}")
    return os.WIFSIGNALED(status)


def _cpu_seconds(child: int) -> float:
    times = psutil.Process(child).cpu_times()
    return float(times.user + times.system)


@dataclass(frozen=True)
class Trial:
    """What is killed: a command, the folders with results that it leaves, and what these are when nobody kills it."""

    words: tuple[str, ...]
    parts: tuple[str, ...]
    wanted: Mapping[str, bytes]
    digests: Mapping[str, str]
    seconds: float

    @classmethod
    def of(cls, folder: Path, words: tuple[str, ...], parts: tuple[str, ...]) -> Trial:
        shutil.rmtree(folder / "cache" / "stages", ignore_errors=True)
        seconds = run(folder, *words, "cache=auto", "output.dir=wanted")
        trial = cls(words, parts, _files(folder / "wanted", parts), _digests(folder), seconds)
        shutil.rmtree(folder / "wanted")
        return trial

    def wrong(self, folder: Path) -> list[str]:
        """What is not as it should be after a resume."""
        found = _files(folder / "killed", self.parts)
        stored = _digests(folder)
        differing = [name for name in self.wanted if found.get(name) != self.wanted[name]]
        damaged = [key for key in stored if stored[key] != self.digests.get(key)]
        left = [str(path.relative_to(folder)) for path in half_written(folder / "killed")]
        kept = [path.name for path in (folder / "cache" / "runs").glob("*")]
        return [*differing, *damaged, *left, *kept]


def _files(output: Path, parts: tuple[str, ...]) -> dict[str, bytes]:
    paths = (Path(part) / name for part in parts for name in FILES)
    return {str(path): (output / path).read_bytes() for path in paths if (output / path).exists()}


def _digests(folder: Path) -> dict[str, str]:
    store = Store(folder / "cache" / "stages")
    found = {entry.key: store.load(entry.key) for entry in store.entries()}
    return {key: packed.digest() for key, packed in found.items() if packed is not None}


def half_written(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if "partial" in path.name]


def main() -> int:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    chance = random.Random(sys.argv[2] if len(sys.argv) > 2 else None)
    bad = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["LTXGEN_CACHE"] = str(folder / "cache")
        where = Whereabouts()
        where.follow_stages()
        torch.set_num_threads(1)
        assert here(folder, *SWEEP, "output.dir=first") == 0  # makes the embedded model as well
        trials = {"run": Trial.of(folder, RUN, ("",)), "sweep": Trial.of(folder, SWEEP, ("0", "1", "2", "3"))}
        for name, trial in trials.items():
            places: collections.Counter[str] = collections.Counter()
            half = 0
            for number in range(kills):
                shutil.rmtree(folder / "cache" / "stages", ignore_errors=True)
                mode = chance.choice(("off", "auto", "read"))
                moment = chance.uniform(0, trial.seconds)
                where.at(STARTING)
                hit = kill(folder, moment, *trial.words, f"cache={mode}", "output.dir=killed")
                place = str(where) if hit else "had ended"
                cut = [path for path in half_written(folder) if path.is_file()]
                again = (folder / "killed" / "sweep.json").exists() or any((folder / "cache" / "runs").glob("*/"))
                again_words = ("resume", "killed") if again or not hit else (*trial.words, "output.dir=killed")
                run(folder, *again_words)  # where there was no run yet, it starts
                found = trial.wrong(folder)
                bad += bool(found)
                half += bool(cut)
                places[place] += 1
                told = f"{len(cut)} files half-written" if cut else ""
                print(
                    f"{name:5} {number:3} cache={mode:5} {moment:5.2f} s: {place:16} {told} {found or ''}", flush=True
                )
                shutil.rmtree(folder / "killed")
            print(
                f"{name}: {kills} kills, {half} left half-written files; hit "
                + ", ".join(f"{place} {count}" for place, count in places.most_common())
            )
    print(f"{bad} wrong")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
