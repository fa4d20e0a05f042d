"""Kills a run of the embedded model at random moments, resumes it each time, and compares with the undisturbed run.

    python tests/perf/kills.py [KILLS]

A table of how far each run was and what was resumed; exit code 1 if a result differs or anything is left behind.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = (
    *("+recipe=ltx23_two_stage", "model=ltx23_tiny", "request.height=64", "request.width=64", "request.num_frames=9"),
    *("stages.base.steps=8", "stages.base.checkpoint_every=1", "stages.refine.checkpoint_every=1"),
)
FILES = ("contact_sheet.png", "video.mp4")


def ltxgen(*words: str) -> list[str]:
    return [sys.executable, "-m", "ltxgen", *words]


def run(folder: Path, *words: str) -> None:
    subprocess.run(ltxgen(*words), cwd=folder, check=True, capture_output=True)


def kill(folder: Path, seconds: float, *words: str) -> bool:
    """Kill a run so many seconds after it began to work; returns whether it was still at it."""
    process = subprocess.Popen(ltxgen(*words), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not any((folder / "cache" / "runs").glob("killed-*/config.json")):
        time.sleep(0.005)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    return process.wait() != 0


def wrong(output: Path, wanted: Path) -> list[str]:
    """What is not as it should be after a resume."""
    differing = [name for name in FILES if (output / name).read_bytes() != (wanted / name).read_bytes()]
    return differing + [f"left: {path.name}" for path in output.iterdir() if path.name.startswith(".")]


def main() -> int:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    bad = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ.update(LTXGEN_CACHE=str(folder / "cache"), OMP_NUM_THREADS="1")
        run(folder, *WORDS, "cache=off", "output.dir=wanted")  # also makes the embedded model
        whole = json.loads((folder / "wanted" / "manifest.json").read_text())["seconds"]
        for number in range(kills):
            moment = random.uniform(0, 1.1 * whole)
            mode = random.choice(("off", "auto", "read"))
            shutil.rmtree(folder / "cache" / "stages", ignore_errors=True)
            killed = kill(folder, moment, *WORDS, f"cache={mode}", "output.dir=killed")
            run(folder, "resume", "killed")
            stages = json.loads((folder / "killed" / "manifest.json").read_text())["stages"]
            reused = [name for name, stage in stages.items() if stage["from"] == "cache"]
            steps = [stage["resumed after step"] for stage in stages.values() if "resumed after step" in stage]
            found = wrong(folder / "killed", folder / "wanted")
            bad += bool(found)
            what = f"reused {reused}, resumed after step {steps}" if killed else "was done"
            print(f"{number:3} cache={mode:5} {moment:5.2f} s: {what} {found or ''}", flush=True)
            shutil.rmtree(folder / "killed")
    print(f"{kills} kills, {bad} wrong")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
