"""Work in forks of the test's process: processes of their own, without the seconds that imports take."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

FAILED = 99


def started(work: Callable[[], int | None]) -> int:
    """Begin `work` in a child, which exits with what it returns; gives the child's number."""
    child = os.fork()
    if child == 0:
        code = FAILED
        try:
            code = work() or 0
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(code)
    return child


def ended(child: int) -> int:
    """Wait for a child; returns its exit code, or the signal that ended it as a negative number."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die(*arguments: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def killed_at_call(owner: Any, name: str, number: int) -> Iterator[None]:
    """The process is killed when `owner.name` is called for the time of this number, counted from 1."""
    calls = 0
    called = getattr(owner, name)

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            die()
        return called(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, counted)
        yield


def was_killed(work: Callable[[], Any]) -> bool:
    """Do `work` in a child; returns whether SIGKILL ended it."""
    return ended(started(lambda: work() and None)) == -signal.SIGKILL
