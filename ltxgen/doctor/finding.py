"""What was found of one thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """`about` the thing `name`: a `problem` would stop a run, a `note` costs something or is good to know; `fix` says
    what to do about either."""

    about: str
    name: str
    status: Status
    what: str
    fix: str = ""


def finding(about: str, name: str, wrong: str | None, right: str, fix: str = "") -> Finding:
    """A problem where something is `wrong`; else that all is `right`."""
    return Finding(about, name, "ok", right) if wrong is None else Finding(about, name, "problem", wrong, fix)
