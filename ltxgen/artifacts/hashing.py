"""SHA-256 of files and folders, remembered on disk: hashing a 46 GB checkpoint takes a minute, once.

A run does it in several threads, before its first stage: stored outputs are looked up by it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from ltxgen.artifacts.cache_folder import cache_folder, one_at_a_time

CHUNK_BYTES = 16 * 1024 * 1024
_FOLDER = "|folder"  # behind the path of one; behind a file's stand its size and time
_SHA256_NAME = re.compile(r"[0-9a-f]{64}")
_REMEMBERED = threading.Lock()
_computed: dict[str, str] = {}  # in this process, for a cache folder that can't be written
NUM_THREADS = 4


class Hashing:
    """Computes the digests of files that aren't remembered yet in threads, for `sha256_of` to find; a context manager.

    Leaving it waits for them, after an error not.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = list(paths)
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="hashing")
        self._ended = threading.Event()

    def start(self) -> None:
        files = [file for path in self._paths for file in (_files(path) if path.is_dir() else [path])]
        for file in files:
            self._threads.submit(sha256_of, file, ended=self._ended)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._ended.set()
        self._threads.shutdown(cancel_futures=error is not None)


class Ended(Exception):
    """Nobody wants the digest any more."""


def sha256_of(path: Path, *, verify: bool = False, ended: threading.Event | None = None) -> str:
    """Hex digest of a file, or of a folder's sorted `digest  name` lines.

    A file of the Hugging Face cache is stored under its published digest and that name is taken; verify=True reads
    every byte instead, whatever is remembered. Raises Ended soon after `ended` is set.
    """
    if path.is_dir():
        lines = [f"{sha256_of(file, verify=verify)}  {file.relative_to(path).as_posix()}\n" for file in _files(path)]
        whole = hashlib.sha256("".join(lines).encode()).hexdigest()
        _remember(f"{path.resolve()}{_FOLDER}", whole)
        return whole
    real = path.resolve()
    if not verify and real.parent.name == "blobs" and _SHA256_NAME.fullmatch(real.name):
        return real.name
    stat = real.stat()
    key = f"{real}|{stat.st_size}|{stat.st_mtime_ns}"
    if not verify and (remembered := _load().get(key)):
        return remembered
    digest = _digest(real, ended)
    _remember(key, digest)
    return digest


def remembered_places(digest: str) -> list[Path]:
    """Where files and folders of this digest were when they were hashed. They may have changed since."""
    places = (key.removesuffix(_FOLDER).split("|")[0] for key, known in _load().items() if known == digest)
    return [path for path in map(Path, dict.fromkeys(places)) if path.exists()]


def _remember(key: str, digest: str) -> None:
    with _REMEMBERED:
        if _load().get(key) != digest:
            _computed[key] = digest
            _store(key, digest)


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _digest(path: Path, ended: threading.Event | None) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            if ended is not None and ended.is_set():
                raise Ended
            digest.update(chunk)
    return digest.hexdigest()


def _load() -> dict[str, str]:
    try:
        return _computed | json.loads((cache_folder() / "sha256.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # nothing remembered yet, or not readable
        return dict(_computed)


def _store(key: str, digest: str) -> None:
    try:
        with one_at_a_time("sha256") as folder:
            partial = folder / ".sha256.partial"  # one name: what a killed process left of it is written over
            partial.write_text(json.dumps({**_load(), key: digest}, indent=0), encoding="utf-8")
            os.replace(partial, folder / "sha256.json")
    except OSError:
        return  # a read-only or full cache folder only means that the digest is computed again next time
