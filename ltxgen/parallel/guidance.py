"""The passes of a guided step, dealt to the ranks of the guidance axis.

Whole passes rarely come out even. What the busiest rank has more than the others can be shared at the end: the last
blocks of one of its passes, which all ranks run together, each with a part of the tokens.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

from ltxgen.models.transformer import Fork, Perturbation, forks

# Of a block's work on its video tokens, by multiplications with weights (C the width, audio's half of it): 4C² in self
# attention, 2C² in text attention (queries and output), 2C² towards and from the audio, 8C² in the feed-forward.
SHARE_ACROSS = 2 / 16  # what isolated modalities leave out
SHARE_SELF = 2 / 16  # queries and keys, which a value that passes through does not need
SHARED = 1.2  # what ranks take for shared blocks, in parts of an even share: the rest is exchange (docs/parallel.md)


class GuidedPass(Protocol):
    """What this needs to know of a pass. Passes with equal contexts can share work."""

    @property
    def context(self) -> Any: ...
    @property
    def perturbation(self) -> Perturbation: ...


Pass = TypeVar("Pass", bound=GuidedPass)


class Tail(NamedTuple):
    """The blocks from `block` on of the step's pass `number`."""

    number: int
    block: int


class Load(NamedTuple):
    """Work of a step in parts of an unperturbed pass: of the busiest rank before the tail, and of the whole tail."""

    own: float = 0.0
    tail: float = 0.0


@dataclass(frozen=True)
class Deal:
    """The rank of each pass of a step, the `tail` of one of them that all ranks share after their own, and the `load`
    that this makes."""

    owners: tuple[int, ...]
    tail: Tail | None = None
    load: Load = field(default=Load(), compare=False)

    def whole(self, rank: int) -> list[int]:
        """The numbers of the passes that `rank` runs to their end."""
        shared = None if self.tail is None else self.tail.number
        return [number for number, owner in enumerate(self.owners) if owner == rank and number != shared]

    def blocks(self, number: int, num_blocks: int) -> range:
        """Those of a pass that its owner runs."""
        if self.tail is not None and number == self.tail.number:
            return range(self.tail.block)
        return range(num_blocks)


def relative_cost(perturbation: Perturbation, num_blocks: int, blocks: range) -> float:
    """Work of `blocks` in parts of an unperturbed pass's: close enough to say who takes one more."""
    across = SHARE_ACROSS if perturbation.isolate_modalities else 0.0
    skipped = sum(block in blocks for block in perturbation.skip_video_self_attention)
    return ((1.0 - across) * len(blocks) - SHARE_SELF * skipped) / num_blocks


def forks_of(passes: Sequence[GuidedPass], num_blocks: int) -> list[Fork]:
    """Where each of one rank's passes parts from the others; till then it shares their blocks."""
    return forks([(each.context, (each.perturbation,)) for each in passes], num_blocks)


def deal(passes: Sequence[Pass], num_ranks: int, num_blocks: int, *, share_tail: bool = False) -> Deal:
    """Who runs which pass such that the step takes the least; of equals, the earlier ranks take more.

    All ways to deal are looked at: a step has four passes at most. Passes that share blocks cost less on one rank. With
    `share_tail` what the busiest rank has too much may be shared, from the block on that suits best.
    """
    return _deal(tuple(passes), num_ranks, num_blocks, share_tail)


@functools.cache  # the same in every step
def _deal(passes: tuple[Any, ...], num_ranks: int, num_blocks: int, share_tail: bool) -> Deal:
    def cost(dealt: Deal) -> tuple[float, ...]:
        total = dealt.load.own + SHARED * dealt.load.tail / num_ranks
        # Of what is as good to a hundredth of a pass, the last one's tail: isolated modalities exchange less.
        return round(total, 2), 0 if dealt.tail is None else -dealt.tail.number, total

    return min(_ways(passes, num_ranks, num_blocks, share_tail), key=cost)


def _ways(passes: tuple[Any, ...], num_ranks: int, num_blocks: int, share_tail: bool) -> Iterator[Deal]:
    for owners in itertools.product(range(num_ranks), repeat=len(passes)):
        loads = [_load(passes, owners, rank, num_blocks) for rank in range(num_ranks)]
        yield Deal(owners, load=Load(max(loads)))
        if share_tail:
            busiest = max(range(num_ranks), key=loads.__getitem__)
            most = loads.pop(busiest)
            for tail, work in _tails(passes, owners, busiest, num_blocks):
                yield Deal(owners, tail, Load(max(most - work, *loads), work))


def _tails(passes: Sequence[Any], owners: Sequence[int], rank: int, num_blocks: int) -> Iterator[tuple[Tail, float]]:
    """What `rank` could share of its passes, with its work: of those from which no other one starts."""
    mine = [number for number, owner in enumerate(owners) if owner == rank]
    parting = forks_of([passes[number] for number in mine], num_blocks)
    for place, (number, fork) in enumerate(zip(mine, parting, strict=True)):
        if all(other.source != place for at, other in enumerate(parting) if at != place):
            for block in range(fork.block, num_blocks):
                work = relative_cost(passes[number].perturbation, num_blocks, range(block, num_blocks))
                yield Tail(number, block), work


def _load(passes: Sequence[GuidedPass], owners: Sequence[int], rank: int, num_blocks: int) -> float:
    """Of one rank's passes; blocks that they share count once."""
    mine = [each for each, owner in zip(passes, owners, strict=True) if owner == rank]
    parting = forks_of(mine, num_blocks)
    return sum(
        relative_cost(each.perturbation, num_blocks, range(fork.block, num_blocks))
        for each, fork in zip(mine, parting, strict=True)
    )
