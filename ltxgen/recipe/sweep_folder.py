"""The folder of a sweep: DIR/0, DIR/1, ... hold the jobs, sweep.json says how far they are, .sweep what they were."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltxgen.config.errors import Problem, Refusal
from ltxgen.media.files import whole_file

RECORD = "sweep.json"
HIDDEN = ".sweep"  # the jobs' configs, and locks


@dataclass(frozen=True)
class Job:
    """One job of a sweep, as Hydra numbers it. The output folder in `config` is the sweep's and the number."""

    number: int
    overrides: Sequence[str]
    config: Mapping[str, Any]


class SweepFolder:
    """DIR/sweep.json: `jobs` (list of folder, overrides, status `done`, `failed` or `pending`, then `seconds` and
    `files` or `error`) in the order of their numbers, and `loads` (component -> how often it was loaded).

    Rewritten as a whole at every change, under a lock: several processes may work on one sweep.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def record(self) -> dict[str, Any]:
        """What sweep.json holds. Raises Refusal when it can't be read."""
        try:
            record = json.loads((self.path / RECORD).read_text(encoding="utf-8"))
            assert isinstance(record["loads"], dict)
            assert all(map(_is_job, record["jobs"]))
        except (OSError, ValueError, LookupError, TypeError, AssertionError, RecursionError) as error:
            what = f"its {RECORD} is no record of a sweep that can be read, a JSON mapping with `jobs` and `loads`"
            message = f"{what}; start the sweep again with output.dir={self.path}"
            raise Refusal([Problem("resume", str(self.path), message)]) from error
        return record

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other commands off this sweep. Raises Refusal while another one works on it."""
        with self._lock("command", fcntl.LOCK_EX | fcntl.LOCK_NB):
            yield

    def begin(self, jobs: Sequence[Job], *, anew: bool) -> None:
        """Write down jobs to come, all pending; `anew` forgets those of an earlier sweep."""
        configs = self.path / HIDDEN
        configs.mkdir(parents=True, exist_ok=True)
        self._discard_half_written()
        for file in configs.glob("*.json") if anew else ():
            file.unlink()
        for job in jobs:
            _write(configs / f"{job.number}.json", {"overrides": list(job.overrides), "config": job.config})
        with self._changed(anew) as record:
            record["jobs"] += [
                {"folder": str(job.number), "overrides": list(job.overrides), "status": "pending"} for job in jobs
            ]

    def done(self, number: int, seconds: float, loads: Mapping[str, int]) -> None:
        """A job's folder is complete. `loads` are those since the last call of this process."""
        files = {file.name: file.stat().st_size for file in sorted((self.path / str(number)).iterdir())}
        self._settle(number, loads, status="done", seconds=round(seconds, 3), files=files)

    def failed(self, number: int, error: str, loads: Mapping[str, int] | None = None) -> None:
        self._settle(number, loads or {}, status="failed", error=error)

    def jobs(self) -> dict[int, str]:
        """The status of every job by its number."""
        return {int(entry["folder"]): entry["status"] for entry in self.record["jobs"]}

    def errors(self) -> dict[int, str]:
        """What failed jobs failed with."""
        return {int(entry["folder"]): entry["error"] for entry in self.record["jobs"] if entry["status"] == "failed"}

    def unfinished(self) -> list[Job]:
        """The jobs that are not there whole, as they were planned; what is left of them is taken away."""
        return [self._stored(entry["folder"]) for entry in self.record["jobs"] if not self._is_whole(entry)]

    def reopen(self, jobs: Sequence[Job]) -> None:
        """Let these be pending, and discard what a killed process left half-written."""
        self._discard_half_written()
        for job in jobs:
            self._settle(job.number, {}, status="pending")
            for partial in (self.path / str(job.number)).glob(".partial-*"):
                shutil.rmtree(partial)

    def _discard_half_written(self) -> None:
        """Nobody else writes here: this command is `alone`."""
        for folder in (self.path, self.path / HIDDEN):
            for partial in folder.glob(".*.partial.*"):
                partial.unlink()

    def _is_whole(self, entry: Mapping[str, Any]) -> bool:
        folder = self.path / entry["folder"]
        files = {name: folder / name for name in entry.get("files", ())}
        return entry["status"] == "done" and all(
            file.is_file() and file.stat().st_size == entry["files"][name] for name, file in files.items()
        )

    def _stored(self, name: str) -> Job:
        file = self.path / HIDDEN / f"{name}.json"
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
            config = stored["config"]
            # The folder may have been moved.
            config["output"]["dir"] = str(self.path / name)
            return Job(int(name), stored["overrides"], config)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise Refusal([Problem("resume", str(file), "is missing or broken; start the sweep again")]) from error

    def _settle(self, number: int, loads: Mapping[str, int], **facts: Any) -> None:
        with self._changed() as record:
            entry = next(each for each in record["jobs"] if each["folder"] == str(number))
            kept = {key: entry[key] for key in ("folder", "overrides")}
            entry.clear()
            entry.update(kept | facts)
            for name, count in loads.items():
                record["loads"][name] = record["loads"].get(name, 0) + count

    @contextmanager
    def _changed(self, anew: bool = False) -> Iterator[dict[str, Any]]:
        with self._lock("record", fcntl.LOCK_EX):
            record: dict[str, Any] = {"jobs": [], "loads": {}} if anew else self.record
            yield record
            record["jobs"].sort(key=lambda entry: int(entry["folder"]))
            _write(self.path / RECORD, record)

    @contextmanager
    def _lock(self, name: str, how: int) -> Iterator[None]:
        (self.path / HIDDEN).mkdir(parents=True, exist_ok=True)
        with open(self.path / HIDDEN / f"{name}.lock", "w") as file:
            try:
                fcntl.flock(file, how)
            except BlockingIOError:
                message = "another process works on this sweep; wait for it, or take another output.dir"
                raise Refusal([Problem("output.dir", str(self.path), message)]) from None
            yield  # closing the file, or the end of this process, releases it


def _is_job(entry: Any) -> bool:
    match entry:
        case (
            {"folder": str(folder), "overrides": list(), "status": "pending"}
            | {"folder": str(folder), "overrides": list(), "status": "done", "files": dict()}
            | {"folder": str(folder), "overrides": list(), "status": "failed", "error": str()}
        ):
            return folder.isdecimal()  # no way out of this folder
    return False


def failed_message(errors: Mapping[int, str], folder: Path) -> str:
    """What a sweep with failed jobs ends with."""
    lines = "\n".join(f"  {folder / str(number)}: {error}" for number, error in errors.items())
    jobs = "1 job" if len(errors) == 1 else f"{len(errors)} jobs"
    return f"{jobs} failed; `ltxgen resume {folder}` tries again:\n{lines}"


def _write(path: Path, content: Any) -> None:
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
