"""What reuse is: a stage's way to spend less on an evaluation whose result hardly differs from earlier ones'.

All kinds but `none` are approximations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor

from ltxgen.config.errors import Problem
from ltxgen.config.schema import UnitFloat
from ltxgen.diffusion.pair import Pair
from ltxgen.models.transformer import PassesModel, Transformer


class Prediction(NamedTuple):
    """Guided clean latents (B, T, C), and for which modality they are new: guidance may repeat the last ones."""

    x0: Pair[Tensor]
    is_new: Pair[bool]


class Ranks(Protocol):
    """How the ranks of a stage come to know the same; each call is one that all of them make together."""

    def own_tokens(self, hidden: Pair[Tensor]) -> Pair[Tensor]:
        """What a sharded transformer holds (B, T, C), without the padding."""
        ...

    def summed(self, x: Tensor) -> Tensor:
        """Over the ranks that share the tokens of a pass."""
        ...

    def largest(self, x: Tensor) -> Tensor:
        """Of all ranks; bit for bit the same on each."""
        ...


class Reuse(Protocol):
    """One run of a stage. What it remembers goes with it."""

    def wrap(self, transformer: Transformer, ranks: Ranks) -> PassesModel:
        """What the stage runs in the transformer's place."""
        ...

    def predict(self, number: int, sigma: float, evaluate: Callable[[], Prediction]) -> Pair[Tensor]:
        """The guided x0 of an evaluation (counted from 0): what `evaluate` gives, or an estimate of it."""
        ...

    @property
    def facts(self) -> Mapping[str, Any]:
        """How often it computed and how often it did not, for the manifest."""
        ...

    @property
    def state(self) -> Any:
        """What the rest of the run depends on, as tensors, numbers and dataclasses of them; may be set anew."""
        ...

    @state.setter
    def state(self, state: Any) -> None: ...


class ReuseConfig(Protocol):
    """A reuse's YAML.

    `ranges` has an entry for each evaluation of the stage, equal for neighbours that are guided alike.
    """

    kind: ClassVar[str]
    kept_hidden: ClassVar[int]  # hidden states that are kept of each pass, all tokens at stream width
    decides: ClassVar[bool]  # while running, from what was computed: a stage can't go on from a checkpoint then

    def build(self, ranges: Sequence[int]) -> Reuse: ...

    def evaluated(self, ranges: Sequence[int]) -> Sequence[bool]:
        """Which evaluations are computed, as far as that is known beforehand."""
        ...

    def note(self, ranges: Sequence[int]) -> str | None:
        """What to say of it in a plan; None for what is no approximation."""
        ...

    def problems(self, path: str, num_blocks: int) -> list[Problem]:
        """What doesn't fit a transformer of `num_blocks` blocks; `path` is where this config stands."""
        ...


@dataclass(frozen=True)
class Span:
    """The part of a stage in which it reuses, in parts of its evaluations; before and after it all are computed."""

    start: UnitFloat = 0.2
    end: UnitFloat = 0.9

    def of(self, count: int) -> range:
        """The numbers of the evaluations, of `count`."""
        first, last = (min(count, _at_least(each * count)) for each in (self.start, self.end))
        return range(first, max(first, last))

    def span_problems(self, path: str) -> list[Problem]:
        if self.start < self.end:
            return []
        return [Problem(f"{path}.end", self.end, f"must be above {path}.start, which is {self.start}")]


def _at_least(number: float) -> int:
    """Rounded up, but for what 0.1 and its like have too much in binary."""
    return -int(-(number - 1e-9) // 1)
