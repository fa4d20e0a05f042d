"""What all cases of a run have in common."""

from __future__ import annotations

from dataclasses import dataclass

from ltxgen.bench.ceilings import Ceilings
from ltxgen.bench.timing import Log
from ltxgen.stage.protocol import RunContext


@dataclass(frozen=True)
class Conditions:
    """The ceilings that floors are counted with, whether a peer takes turns, and where stages and cases report to."""

    ceilings: Ceilings
    with_peer: bool
    context: RunContext
    log: Log
