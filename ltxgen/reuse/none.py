"""Every evaluation computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ltxgen.config.errors import Problem
from ltxgen.diffusion.pair import Pair
from ltxgen.models.transformer import PassesModel, Transformer
from ltxgen.registry import register
from ltxgen.reuse.protocol import Prediction, Ranks


@register("reuse", "none")
@dataclass(frozen=True)
class NoneConfig:
    """Nothing to choose."""

    kept_hidden: ClassVar = 0
    decides: ClassVar = False

    def build(self, ranges: Sequence[int]) -> NoReuse:
        return NoReuse()

    def evaluated(self, ranges: Sequence[int]) -> Sequence[bool]:
        return [True] * len(ranges)

    def note(self, ranges: Sequence[int]) -> None:
        return None

    def problems(self, path: str, num_blocks: int) -> list[Problem]:
        return []


class NoReuse:
    facts: Mapping[str, Any] = {}
    state: Any = None

    def wrap(self, transformer: Transformer, ranks: Ranks) -> PassesModel:
        return transformer

    def predict(self, number: int, sigma: float, evaluate: Callable[[], Prediction]) -> Pair[Tensor]:
        return evaluate().x0
