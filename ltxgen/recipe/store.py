"""Values kept as files by key: written whole, checked when read, the least recently used dropped first.

One safetensors file a key, a SHA-256; other files are left alone. Several processes may use a folder at once: files
appear by renaming, two writers of one key write the same, and a file that is dropped while it is read stays readable.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltxgen.artifacts.safetensors_file import BadFile, SafetensorsFile, read_header, write_safetensors
from ltxgen.media.files import locked, whole_file
from ltxgen.recipe.state import Packed, digest

FORMAT = 1
SUFFIX = ".safetensors"
KEY = re.compile("[0-9a-f]{64}")
LOCK = ".lock"
# A hidden file of this age was left by a process that was killed: writing one takes seconds.
ABANDONED_SECONDS = 3600.0


class BadEntry(Exception):
    """A file of the store that can't be used; the text says why."""


@dataclass(frozen=True)
class Entry:
    """What is known of a stored value without reading its tensors; `used` is when it was last written or read."""

    key: str
    path: Path
    num_bytes: int
    used: float

    def facts(self) -> Mapping[str, Any]:
        """What was said of it when it was saved. Raises BadEntry."""
        try:
            return dict(json.loads(read_header(self.path).metadata["entry"])["facts"])
        except BadFile as error:
            raise BadEntry(str(error)) from error
        except (ValueError, KeyError, TypeError) as error:
            raise BadEntry("says nothing of what it holds") from error


class Store:
    """Values by key in `folder`, which is made when something is saved; `max_bytes` of None sets no limit."""

    def __init__(self, folder: Path, max_bytes: int | None = None) -> None:
        self.folder = folder
        self.max_bytes = max_bytes

    def path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def save(self, key: str, packed: Packed, facts: Mapping[str, Any]) -> None:
        """Keep a value, and drop others if the limit says so. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        entry = json.dumps({"format": FORMAT, "key": key, "facts": facts, "structure": packed.structure})
        metadata = {"entry": entry, "sha256": digest(entry, packed.tensors)}
        with whole_file(self.path(key)) as partial:
            write_safetensors(partial, packed.tensors, metadata)
        self.evict()

    def load(self, key: str) -> Packed | None:
        """The value, checked to its last byte; None if there is none. Raises BadEntry for one that is damaged."""
        packed = self._read(key)
        if packed is not None:
            with contextlib.suppress(OSError):  # a folder that can only be read keeps no order of use
                os.utime(self.path(key))
        return packed

    def _read(self, key: str) -> Packed | None:
        """Once more when another process has dropped or replaced the file meanwhile."""
        path = self.path(key)
        while (seen := _inode(path)) is not None:
            try:
                return _read(path, key)
            except (BadEntry, FileNotFoundError):
                if _inode(path) == seen:
                    raise
        return None

    def check(self, key: str) -> str | None:
        """What is wrong with a stored value; None when nothing is."""
        try:
            self._read(key)
        except (BadEntry, OSError) as error:
            return str(error)
        return None

    def remove(self, key: str) -> None:
        self.path(key).unlink(missing_ok=True)

    def entries(self) -> list[Entry]:
        """All that is stored, the least recently used first."""
        found = []
        for path in self.folder.glob(f"[!.]*{SUFFIX}"):
            if not KEY.fullmatch(path.stem):
                continue  # not ours, and not ours to drop
            with contextlib.suppress(FileNotFoundError):  # dropped since
                stat = path.stat()
                found.append(Entry(path.stem, path, stat.st_size, stat.st_mtime))
        return sorted(found, key=lambda entry: (entry.used, entry.key))

    def evict(self) -> None:
        """Drop what exceeds the limit, and what killed processes left half-written."""
        if self.max_bytes is None:
            return
        with locked(self.folder / LOCK) as alone:
            if not alone:
                return  # two would drop twice as much
            for partial in self.folder.glob(f".*.partial{SUFFIX}"):
                with contextlib.suppress(FileNotFoundError):  # finished since
                    if time.time() - partial.stat().st_mtime > ABANDONED_SECONDS:
                        partial.unlink()
            entries = self.entries()
            excess = sum(entry.num_bytes for entry in entries) - self.max_bytes
            for entry in entries:
                if excess <= 0:
                    break
                self.remove(entry.key)
                excess -= entry.num_bytes


def _read(path: Path, key: str) -> Packed:
    try:
        with SafetensorsFile(path) as file:
            metadata = file.header.metadata
            tensors = {name: file.read(name) for name in file.header.tensors}
    except BadFile as error:
        raise BadEntry(str(error)) from error
    text = metadata.get("entry", "")
    if digest(text, tensors) != metadata.get("sha256"):
        raise BadEntry("is damaged: its checksum is another one")
    entry = json.loads(text)
    if (entry["format"], entry["key"]) != (FORMAT, key):
        raise BadEntry(f"holds {entry['key']} in format {entry['format']}")
    return Packed(entry["structure"], tensors)


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns
