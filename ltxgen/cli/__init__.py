"""The command line: finds the command, lets Hydra compose, and is the only place that prints an error and exits.

Exit codes: 0 done; 2 the request, recipe or artifacts are refused, with nothing written; 130 interrupted; 1 the rest.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from ltxgen import __version__
from ltxgen.cli.commands import COMMANDS, USAGE, command
from ltxgen.cli.outcome import guarded
from ltxgen.config.errors import Problem, Refusal, did_you_mean
from ltxgen.parallel import ending


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command; ends the process."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if ending.is_rank():
        ending.end_promptly()
    sys.exit(guarded(lambda: _dispatch(words, debug), debug))


def _dispatch(words: list[str], debug: bool) -> int | None:
    if not words:
        print(USAGE.format(version=__version__), end="")
        return 0
    if "--version" in words:
        print(f"ltxgen {__version__}")
        return 0
    name, rest = words[0], words[1:]
    if name in COMMANDS:
        return command(name)(rest, debug)
    if name in ("rank", "sweep-rank", "bench-rank") and ending.is_rank():
        return command("rank")(words, debug)
    if "=" in name or name.startswith(("-", "+", "~")):
        return command("run")(words, debug)
    message = f"must be one of {', '.join(COMMANDS)}{did_you_mean(name, COMMANDS)}"
    raise Refusal([Problem("command", name, message)])
