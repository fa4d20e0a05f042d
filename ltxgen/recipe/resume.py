"""What a run leaves so that it can go on after it was interrupted: its config and, where the cache doesn't have them,
the outputs of its finished stages. It lies in ltxgen's cache folder, under the output folder's name, until the run is
done: what is half made never stands where results do.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltxgen.artifacts.cache_folder import cache_folder, one_at_a_time
from ltxgen.config.errors import Problem, Refusal
from ltxgen.media.files import locked, whole_file

RUNS = "runs"
CONFIG, STAGES = "config.json", "stages"
MANIFEST = "manifest.json"
# Runs that were interrupted this long ago and not continued are forgotten.
KEPT_SECONDS = 30 * 24 * 3600.0


@dataclass(frozen=True)
class Interrupted:
    """A run that did not end: its composed config, and the folder that its relative paths start from."""

    config: dict[str, Any]
    started_in: Path


def run_state(output: Path) -> Path:
    """The folder of what is kept of a run into `output`."""
    place = output.expanduser().absolute()
    return cache_folder() / RUNS / f"{place.name}-{hashlib.sha256(str(place).encode()).hexdigest()[:16]}"


def _lock(state: Path) -> Path:
    """Beside the folder, not in it: whoever has it may make that folder or take it away."""
    return state.with_name(f"{state.name}.lock")


def own_stages(output: Path) -> Path | None:
    """Where the run into `output` keeps outputs of its own; None for a run that can't be continued."""
    state = run_state(output)
    return state / STAGES if (state / CONFIG).exists() else None


@contextlib.contextmanager
def resumable(
    output: Path, composed: Mapping[str, Any], note: Callable[[str], None], *, continues: bool = False
) -> Iterator[None]:
    """While the block runs, and after it was interrupted, `interrupted(output)` gives `composed` back.

    With `continues`, outputs of the interrupted run are there to be used. Raises Refusal when a run into `output` is
    still going on.
    """
    state = run_state(output)
    with contextlib.ExitStack() as held:
        try:
            state.parent.mkdir(parents=True, exist_ok=True)
            with one_at_a_time(RUNS):  # whoever looks after other runs' states holds their locks for a moment
                alone = held.enter_context(locked(_lock(state)))
            if not alone:
                message = "another run is writing there; choose another folder"
                raise Refusal([Problem("output.dir", str(output), message)])
            forget_runs(KEPT_SECONDS)
            if not continues:
                shutil.rmtree(state / STAGES, ignore_errors=True)
            state.mkdir(exist_ok=True)
            with whole_file(state / CONFIG) as partial:
                partial.write_text(json.dumps({"config": composed, "started_in": os.getcwd()}), encoding="utf-8")
        except OSError as error:
            note(f"this run can't be resumed if it is interrupted: {state}: {error.strerror or error}")
        yield
        shutil.rmtree(state, ignore_errors=True)
        with contextlib.suppress(OSError):  # as said above
            _lock(state).unlink()


def interrupted(output: Path) -> Interrupted | None:
    """The run into `output` that did not end; None where it did.

    Raises Refusal when there was none, or when it is still going on.
    """
    state = run_state(output)
    if not (state / CONFIG).exists():
        if (output / MANIFEST).exists():  # moved there last
            _require_manifest(output)
            return None
        what = "no run into this folder was interrupted; give what output.dir was, with the same LTXGEN_CACHE"
        raise Refusal([Problem("resume", str(output), what)])
    with one_at_a_time(RUNS), locked(_lock(state)) as alone:
        if not alone:
            raise Refusal([Problem("resume", str(output), "is still being written; wait for that run, or end it")])
    try:
        kept = json.loads((state / CONFIG).read_text(encoding="utf-8"))
        return Interrupted(dict(kept["config"]), Path(kept["started_in"]))
    except (OSError, ValueError, LookupError, TypeError) as error:
        what = f"its record, {state / CONFIG}, is broken; start the run again with output.dir={output}"
        raise Refusal([Problem("resume", str(output), what)]) from error


def _require_manifest(output: Path) -> None:
    try:
        manifest = json.loads((output / MANIFEST).read_text(encoding="utf-8"))
        assert isinstance(manifest["stages"], dict)
    except (OSError, ValueError, LookupError, TypeError, AssertionError, RecursionError) as error:
        what = f"its {MANIFEST} is not that of a run, a JSON mapping with `stages`"
        message = f"{what}; give another folder, or make the run again with `ltxgen replay {output}`"
        raise Refusal([Problem("resume", str(output), message)]) from error


def forget_runs(older_than_seconds: float = 0.0) -> int:
    """Drop what is kept of runs that were interrupted so long ago; returns their number."""
    forgotten = 0
    for state in (cache_folder() / RUNS).glob("*/"):
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            if time.time() - state.stat().st_mtime < older_than_seconds:
                continue
            with one_at_a_time(RUNS), locked(_lock(state)) as alone:
                if not alone:
                    continue
                try:
                    shutil.rmtree(state)
                    forgotten += 1
                finally:
                    _lock(state).unlink()  # made just now, if the run ended meanwhile
    return forgotten
