"""SHA-256 of files and folders, remembered on disk: hashing a 46 GB checkpoint takes a minute, once."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from pathlib import Path

from ltxgen.artifacts.cache_folder import cache_folder

CHUNK_BYTES = 16 * 1024 * 1024
_FOLDER = "|folder"  # behind the path of one; behind a file's stand its size and time
_SHA256_NAME = re.compile(r"[0-9a-f]{64}")


def sha256_of(path: Path, *, verify: bool = False) -> str:
    """Hex digest of a file, or of a folder's sorted `digest  name` lines.

    A file of the Hugging Face cache is stored under its published digest and that name is taken; verify=True reads
    every byte instead, whatever is remembered.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        lines = [f"{sha256_of(file, verify=verify)}  {file.relative_to(path).as_posix()}\n" for file in files]
        whole = hashlib.sha256("".join(lines).encode()).hexdigest()
        _remember(f"{path.resolve()}{_FOLDER}", whole)
        return whole
    real = path.resolve()
    if not verify and real.parent.name == "blobs" and _SHA256_NAME.fullmatch(real.name):
        return real.name
    stat = real.stat()
    key = f"{real}|{stat.st_size}|{stat.st_mtime_ns}"
    remembered = _load()
    if not verify and key in remembered:
        return remembered[key]
    digest = _digest(real)
    _remember(key, digest)
    return digest


def remembered_places(digest: str) -> list[Path]:
    """Where files and folders of this digest were when they were hashed. They may have changed since."""
    places = (key.removesuffix(_FOLDER).split("|")[0] for key, known in _load().items() if known == digest)
    return [path for path in map(Path, dict.fromkeys(places)) if path.exists()]


def _remember(key: str, digest: str) -> None:
    remembered = _load()
    if remembered.get(key) != digest:
        _store({**remembered, key: digest})


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _load() -> dict[str, str]:
    try:
        return dict(json.loads((cache_folder() / "sha256.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):  # nothing remembered yet, or not readable: hash again
        return {}


def _store(digests: dict[str, str]) -> None:
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix=".sha256-")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(digests, file, indent=0)
        os.replace(name, folder / "sha256.json")
    except OSError:
        return  # a read-only or full cache folder only means that the digest is computed again next time
