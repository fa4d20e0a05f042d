"""What a schedule is: the noise levels that a sampler steps through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol


class Schedule(Protocol):
    """A schedule's YAML; it has nothing to build."""

    takes_steps: ClassVar[bool]  # whether the stage says how many steps, or the schedule itself

    def levels(self, steps: int | None, num_tokens: int) -> Sequence[float]:
        """The levels from the first down to 0, each an fp32 value, for a stage of `num_tokens` video tokens.

        `steps` is None where the schedule doesn't take it. ValueError, in words that complete "stages.base.schedule:
        ", where there is no such schedule.
        """
        ...
