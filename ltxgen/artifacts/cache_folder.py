"""Where ltxgen keeps what it makes itself (the embedded model, remembered hashes)."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder() -> Path:
    """`$LTXGEN_CACHE`, else the platform's cache folder (`$XDG_CACHE_HOME` on Linux) with `ltxgen` inside."""
    if own := os.environ.get("LTXGEN_CACHE"):
        return Path(own).expanduser().absolute()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).expanduser().absolute() / "ltxgen"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "ltxgen"
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "ltxgen"
    return Path.home() / ".cache" / "ltxgen"


@contextmanager
def one_at_a_time(name: str) -> Iterator[Path]:
    """Wait until no other process is in a block of this name; gives the cache folder, which is there then.

    The system gives up the lock of a process that ends in any way. Raises OSError where the folder can't be written.
    """
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f".{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
