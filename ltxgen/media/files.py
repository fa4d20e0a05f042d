"""Files that appear whole or not at all, and the checks on a folder that come before a run."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_BLOCK_BYTES = 4096  # one file-system block: writing it shows a full disk that creating an empty file does not


def partial_path(path: Path) -> Path:
    """A hidden, unused name in the folder of `path`, with the same suffix (muxers and Pillow read the suffix)."""
    return path.with_name(f".{path.stem}.{os.getpid()}-{secrets.token_hex(4)}.partial{path.suffix}")


@contextmanager
def whole_file(path: Path, partial: Path | None = None) -> Iterator[Path]:
    """Yield a name beside `path` to write to; rename it to `path` when the block ends, delete it when it raises.

    The file is synced before the rename, so that a full disk that only shows when buffers are flushed (network and
    delayed-allocation file systems) still leaves nothing. `partial` is the name to use if it was needed earlier.
    """
    partial = partial or partial_path(path)
    try:
        yield partial
        with open(partial, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(partial, path)
    except BaseException as error:  # KeyboardInterrupt too: nothing half-written stays
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename == str(partial):
            raise OSError(error.errno, error.strerror, str(path)) from error  # the name that the user knows
        raise


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Whether this process alone has the lock file `path` while the block runs; it does not wait.

    The system gives up the lock of a process that ends in any way. Raises OSError where `path` can't be written.
    """
    while True:
        with open(path, "a") as lock:  # which leaves what a link there points to
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise
                yield False
                return
            if not _is_at(lock.fileno(), path):
                continue  # its last owner has deleted it, and by now there may be another
            yield True
            return


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def check_writable(folder: Path) -> str | None:
    """Say why `folder` can't be written, or None when it can; a folder that does not exist yet is judged by its
    nearest existing parent. Nothing is left behind."""
    place = _nearest_existing(folder)
    if not place.is_dir():
        return f"'{place}' is a file, so no folder can be made there; choose another folder"
    try:
        with tempfile.TemporaryFile(dir=place, buffering=0) as probe:
            probe.write(bytes(_BLOCK_BYTES))
    except OSError as error:
        return f"'{place}' can't be written ({error.strerror}); choose another folder or change its permissions"
    return None


def check_free_space(folder: Path, needed_bytes: int) -> str | None:
    """Say how much is missing on the disk of `folder` for `needed_bytes`, or None when it fits."""
    place = _nearest_existing(folder)
    free = shutil.disk_usage(place).free
    if free >= needed_bytes:
        return None
    return (
        f"the disk of '{place}' has {free / 2**20:,.0f} MiB free and about {needed_bytes / 2**20:,.0f} MiB are needed; "
        "free some space or choose another folder"
    )


def _nearest_existing(folder: Path) -> Path:
    place = Path(folder).absolute()
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    return place
