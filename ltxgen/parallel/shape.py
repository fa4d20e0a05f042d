"""Sizes of a process mesh: plain numbers, known before any process starts."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class MeshShape:
    """Ranks along each axis: passes of a guided step, ring blocks of the sequence, heads of a block."""

    guidance: int = 1
    ring: int = 1
    ulysses: int = 1

    @property
    def num_ranks(self) -> int:
        return self.guidance * self.ring * self.ulysses

    @property
    def num_shards(self) -> int:
        """Ranks that share the tokens of one pass."""
        return self.ring * self.ulysses

    def own_tokens(self, num_tokens: int) -> int:
        """Tokens of a pass on the rank that has the most of them."""
        return math.ceil(num_tokens / self.num_shards)

    def for_passes(self, num_passes: int, num_heads: int) -> MeshShape:
        """The shape that serves a stage of `num_passes` passes a step with the same ranks.

        Guidance ranks that would have no pass share the sequence instead: over heads as far as these divide, the rest
        in the ring. `num_heads` is the greatest common divisor of all head counts.
        """
        guidance = max(degree for degree in divisors(self.guidance) if degree <= max(num_passes, 1))
        freed = self.guidance // guidance
        heads = max(degree for degree in divisors(freed) if num_heads % (self.ulysses * degree) == 0)
        return MeshShape(guidance, self.ring * freed // heads, self.ulysses * heads)

    def __str__(self) -> str:
        sizes = {"guidance": self.guidance, "ring": self.ring, "ulysses": self.ulysses}
        return " x ".join(f"{name} {size}" for name, size in sizes.items() if size > 1) or "one rank"


@dataclass(frozen=True)
class Choice:
    """How the ranks of a run lie, whether each holds a part of the weights, and whether all decode tiles of the video.

    `why` where that was decided here.
    """

    shape: MeshShape
    sharded: bool = False
    vae_tiles: bool = True
    why: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shards:
    """How a modality's tokens lie on the sequence ranks: pieces of equal length, padding at the very end.

    A ring block is the pieces of one Ulysses group, in order. A piece or a block may be all padding.
    """

    num_tokens: int
    num_blocks: int
    pieces_per_block: int

    @property
    def piece_length(self) -> int:
        return math.ceil(self.num_tokens / (self.num_blocks * self.pieces_per_block))

    @property
    def block_length(self) -> int:
        return self.piece_length * self.pieces_per_block

    @property
    def tokens_in_block(self) -> tuple[int, ...]:
        """Tokens of each block without padding, which stands behind them."""
        return tuple(self._tokens(block, self.block_length) for block in range(self.num_blocks))

    def tokens_in_piece(self, number: int) -> int:
        """Tokens of a piece without padding."""
        return self._tokens(number, self.piece_length)

    def _tokens(self, number: int, length: int) -> int:
        return min(max(self.num_tokens - number * length, 0), length)


def divisors(number: int) -> list[int]:
    return [degree for degree in range(1, number + 1) if number % degree == 0]
