"""Refusals: every problem of a request, recipe or artifact, in one message that says what to change."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()


@dataclass(frozen=True)
class Problem:
    """One thing to change.

    `path` is the config path (`request.num_frames`), `value` what stands there (`MISSING` leaves it out of the
    message), `message` what is allowed and the fix.
    """

    path: str
    value: object = field(hash=False)  # a list or mapping as well
    message: str

    def __str__(self) -> str:
        where = self.path if self.value is MISSING else f"{self.path} = {_shown(self.value)}"
        return f"{where}: {self.message}"


class Refusal(Exception):
    """The request, recipe or artifacts can't be run; raised before any weight is loaded (exit code 2)."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        assert problems, "a refusal names at least one problem"
        self.problems = tuple(dict.fromkeys(problems))
        super().__init__("\n".join(str(problem) for problem in self.problems))


class JobsFailed(Exception):
    """Some jobs of a sweep failed, and the others are done (exit code 1)."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest of `known`, or an empty string when none is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its type where it says nothing."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _shown(value: object) -> str:
    text = str(value) if isinstance(value, str | Fraction) else repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
