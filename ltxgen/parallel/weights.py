"""How the blocks' weights are cut into equal parts, one a rank: plain numbers, known before any process starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ltxgen.models.blocks import BLOCKS


def rows_of_rank(num_rows: int, num_ranks: int, rank: int) -> slice:
    """The rows of a tensor that a rank keeps: equal parts, of which the last ones may be shorter or empty."""
    length = math.ceil(num_rows / num_ranks)
    return slice(min(rank * length, num_rows), min((rank + 1) * length, num_rows))


@dataclass(frozen=True)
class ShardedSize:
    """Bytes of a sharded component's weights: all, and what the rank that keeps the most has of them."""

    whole: int
    held: int

    @property
    def gathered(self) -> int:
        """What a rank receives from the others whenever all blocks run."""
        return self.whole - self.held


def sharded_size(
    component: str, shapes: Mapping[str, tuple[int, ...]], bytes_per_value: int, num_ranks: int
) -> ShardedSize:
    """The size of a component whose tensors have these shapes, by their keys in the module."""
    whole = held = 0
    for key, shape in shapes.items():
        num_bytes = math.prod(shape) * bytes_per_value
        whole += num_bytes
        if key.startswith(f"{BLOCKS[component]}."):
            num_bytes = num_bytes // shape[0] * rows_of_rank(shape[0], num_ranks, 0).stop
        held += num_bytes
    return ShardedSize(whole, held)
