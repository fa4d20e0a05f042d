"""How a command ends: what it raises becomes one message and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

from ltxgen.config.errors import JobsFailed, Refusal
from ltxgen.parallel import ending
from ltxgen.parallel.ending import RankFailure


def guarded(command: Callable[[], int | None], debug: bool) -> int:
    """Run a command and turn whatever it raises into one message and an exit code."""
    try:
        return command() or 0
    except Refusal as refusal:
        return _told(_counted(refusal), 2, debug)
    except JobsFailed as failure:
        return _told(str(failure), 1, False)
    except RankFailure as failure:
        return _told(str(failure), failure.code, False)
    except KeyboardInterrupt:
        return _told("interrupted", 130, False)
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except Exception as error:
        what = f"{type(error).__name__}: {str(error) or type(error).__name__} (--debug shows where)"
        if ending.is_rank():
            ending.wait_for_the_end()
            what = f"rank {os.environ['RANK']}: {what}"
        return _told(what, 1, debug)


def _told(message: str, code: int, debug: bool) -> int:
    """Print what ended a command; of several ranks one does, and none stays behind in what it was doing."""
    if ending.is_rank():
        ending.end_within_grace(code)
    if message and ending.speaks(message):
        if debug:
            traceback.print_exc()
        print(f"ltxgen: {message}", file=sys.stderr)
    return code


def _counted(refusal: Refusal) -> str:
    if len(refusal.problems) == 1:
        return str(refusal)
    lines = "\n".join(f"  {line}" for line in str(refusal).splitlines())
    return f"{len(refusal.problems)} things to change:\n{lines}"
