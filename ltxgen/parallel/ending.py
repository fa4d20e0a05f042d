"""How a rank ends: within seconds when it is told to, whatever it is doing, and with one message for all ranks.

Light on purpose: a rank calls `end_promptly` before it imports torch.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

# A rank that was told to end gets this long to unwind; then it is ended where it stands. torchelastic, which tells it,
# would wait 30 s before it kills.
GRACE_SECONDS = 3.0
# The launcher notices a dead rank within 0.1 s and ends the others. A rank with an error waits a little longer for that
# before it tells: its error may only be the echo of another rank's death ("connection closed by peer").
ECHO_SECONDS = 2.0

SPOKEN = "spoken"  # a file in the launcher's log folder: some rank has told what went wrong

_ENDING = (signal.SIGTERM, signal.SIGINT)
_discards: list[Callable[[], None]] = []


class RankFailure(Exception):
    """A rank ended the run; `code` is the exit code. The message is empty when the rank has told it itself: `told`.

    `rank` is the first that failed, None where that isn't known.
    """

    def __init__(self, code: int, message: str = "", rank: int | None = None, told: str = "") -> None:
        self.code = code
        self.rank = rank
        self.told = told
        super().__init__(message)


def is_rank() -> bool:
    """Whether this process is one of several that a launcher started; launchers set the variables that torch reads."""
    return "RANK" in os.environ and world_size() > 1


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def end_promptly() -> None:
    """From now on SIGTERM, SIGINT and the launcher's death end this process within `GRACE_SECONDS`.

    The signal raises SystemExit in the main thread. Where that can't be raised, because the thread waits in a
    collective for a rank that is gone, a second thread discards what is half-written and ends the process.
    """
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    # The interpreter writes each signal's number here at once, while handlers wait for the main thread to be in Python.
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    for number in _ENDING:
        signal.signal(number, _raise_exit)
    threading.Thread(target=_watch, args=(read_end, os.getppid()), name="end-promptly", daemon=True).start()


@contextmanager
def discarded_unless_done(discard: Callable[[], None]) -> Iterator[None]:
    """Call `discard` when the block raises, and when the process must be ended inside the block without unwinding."""
    _discards.append(discard)
    try:
        yield
    except BaseException:
        discard()
        raise
    finally:
        _discards.remove(discard)


def end_within_grace(code: int) -> None:
    """End this process with `code` after `GRACE_SECONDS`, unless it has ended by itself: closing a communicator whose
    other ranks wait elsewhere can take forever."""
    timer = threading.Timer(GRACE_SECONDS, _end_here, (code,))
    timer.daemon = True
    timer.start()


def wait_for_the_end() -> None:
    """Give the launcher the time to end this rank, before it tells an error that may be an echo of another's death."""
    time.sleep(ECHO_SECONDS)


def speaks(message: str = "") -> bool:
    """Whether this rank tells what went wrong: the first one of this machine that asks does. The launcher finds
    `message`.

    Ranks share the folder in which torchelastic keeps their error files; started in another way, each speaks.
    """
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not error_file:
        return True
    try:
        with open(Path(error_file).parent.parent / SPOKEN, "x", encoding="utf-8") as file:
            file.write(message)
    except FileExistsError:
        return False
    except FileNotFoundError:
        return True  # the launcher is gone, and its folder with it
    return True


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """For the launching process: SIGTERM and SIGHUP unwind the block as Ctrl-C does, instead of ending it at once."""
    saved = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    for number in (signal.SIGTERM, signal.SIGHUP):
        if saved[number] != signal.SIG_IGN:  # nohup
            signal.signal(number, _raise_exit)
    try:
        yield
    finally:
        for number, handler in saved.items():
            signal.signal(number, handler)


def _raise_exit(number: int, frame: FrameType | None) -> None:
    for each in _ENDING:
        signal.signal(each, signal.SIG_IGN)  # a second one would interrupt the unwinding
    raise SystemExit(128 + number)


def _watch(read_end: int, launcher: int) -> None:
    while True:
        ready, _, _ = select.select([read_end], [], [], 1.0)
        told = [number for number in os.read(read_end, 64) if number in _ENDING] if ready else []
        if told:
            time.sleep(GRACE_SECONDS)
            _end_here(128 + told[0])
        if os.getppid() != launcher:
            os.kill(os.getpid(), signal.SIGTERM)
            launcher = os.getppid()


def _end_here(code: int) -> None:
    try:
        for discard in reversed(_discards):
            discard()
        sys.stderr.flush()
    finally:
        os._exit(code)
