"""The two pages: of a sweep, and of two runs beside each other."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from ltxgen.config.errors import Problem, Refusal
from ltxgen.media.compare import RunComparison
from ltxgen.media.files import whole_file
from ltxgen.media.gallery.entries import describe_run, differences
from ltxgen.media.gallery.template import render

PAGE_NAME = "index.html"
SWEEP_NAME = "sweep.json"


def write_gallery(folder: Path) -> Path:
    """Write `folder/index.html` from `folder/sweep.json` and what its jobs left; returns its path.

    `sweep.json` holds `jobs`, a list of `{folder, overrides, status, error?}` with the status `done`, `failed` or
    `pending`, and `loads`, how often each component was loaded. May be called again whenever jobs have ended: what was
    read of a video is kept as long as its file is the same. Raises Refusal for a sweep.json that can't be used.
    """
    folder = Path(folder)
    sweep = _read_sweep(folder / SWEEP_NAME)
    runs = [
        {
            **describe_run(folder / job["folder"], quote(job["folder"])),
            "name": job["folder"],
            "overrides": _pairs(job["overrides"]),
            "status": job["status"],
            "error": job.get("error"),
        }
        for job in sweep["jobs"]
    ]
    data = {
        "kind": "sweep",
        "title": next((run["recipe"] for run in runs if run["recipe"]), None) or folder.resolve().name,
        "place": folder.resolve().name,
        "loads": sweep.get("loads") or {},
        "runs": runs,
    }
    return _write(folder / PAGE_NAME, data)


def write_comparison(a: Path, b: Path, comparison: RunComparison, page: Path) -> Path:
    """Write a page of two run folders (or videos) to `page`: both videos, `comparison`, and where the recipes differ.

    Links lead from the page's folder to the runs, so the three can be moved together. Raises OSError when `page` can't
    be written.
    """
    page, frames = Path(page), comparison.frames
    runs = []
    for letter, run in (("A", Path(a)), ("B", Path(b))):
        place = run if run.is_dir() else run.parent
        name = "video.mp4" if run.is_dir() or run.suffix != ".mp4" else run.name
        described = describe_run(place, _link(place, page.parent), name)
        runs.append({**described, "name": str(run), "overrides": [["run", letter]], "status": "done", "error": None})
    data = {
        "kind": "comparison",
        "title": "Two runs",
        "place": f"{a} and {b}",
        "loads": {},
        "runs": runs,
        "measures": comparison.rows(),
        # JSON has no infinity; equal frames are null.
        "psnr": [None if math.isinf(value) else round(value, 3) for value in frames.psnr_by_frame] if frames else [],
        "differences": differences(*[path if path.is_dir() else path.parent for path in (Path(a), Path(b))]),
    }
    return _write(page, data)


def _write(page: Path, data: Mapping[str, Any]) -> Path:
    page.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(page) as partial:
        partial.write_bytes(render(data).encode("utf-8", "replace"))  # names of files need not be Unicode
    return page


def _read_sweep(path: Path) -> dict[str, Any]:
    try:
        sweep = json.loads(path.read_text(encoding="utf-8"))
        jobs = sweep["jobs"]
        for job in jobs:
            if not _stays_inside(job["folder"]) or job["status"] not in ("done", "failed", "pending"):
                raise ValueError(f"a job in folder {job['folder']!r} with status {job['status']!r}")
            assert isinstance(job["overrides"], list)
    except OSError as error:
        raise Refusal([Problem("gallery", str(path), f"can't be read ({error.strerror})")]) from error
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        what = f"is no list of a sweep's jobs: {type(error).__name__}: {error}"
        raise Refusal([Problem("gallery", str(path), what)]) from error
    return sweep


def _stays_inside(folder: object) -> bool:
    path = PurePosixPath(folder) if isinstance(folder, str) else PurePosixPath("/")
    return not path.is_absolute() and ".." not in path.parts and "\\" not in str(folder) and ":" not in str(folder)


def _pairs(overrides: Sequence[str]) -> list[list[str]]:
    """`["request.seed", "1"]` of `request.seed=1`; `["stages.write", "(removed)"]` of `~stages.write`."""
    pairs = []
    for override in map(str, overrides):
        key, separator, value = override.partition("=")
        removed = key.startswith("~")
        pairs.append([key.lstrip("+~"), "(removed)" if removed else value if separator else "(set)"])
    return pairs


def _link(place: Path, start: Path) -> str:
    """A relative address of `place` seen from the folder `start`; on another drive a whole one."""
    try:
        return quote(Path(os.path.relpath(place.resolve(), start.resolve())).as_posix())
    except ValueError:  # Windows: another drive
        return place.resolve().as_uri()
