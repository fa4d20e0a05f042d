"""The passes of a guided step, dealt to the ranks of the guidance axis."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ltxgen.diffusion.pair import Pair
from ltxgen.models.transformer import Fork, Perturbation, forks
from ltxgen.parallel.axes import Axis

# Of a block's work on its video tokens, by multiplications with weights (C the width, audio's half of it): 4C² in self
# attention, 2C² in text attention (queries and output), 2C² towards and from the audio, 8C² in the feed-forward.
SHARE_ACROSS = 2 / 16  # what isolated modalities leave out
SHARE_SELF = 2 / 16  # queries and keys, which a value that passes through does not need


class GuidedPass(Protocol):
    """What this needs to know of a pass. Passes with equal contexts can share work."""

    @property
    def context(self) -> Any: ...
    @property
    def perturbation(self) -> Perturbation: ...
    @property
    def enabled(self) -> Pair[bool]: ...


Pass = TypeVar("Pass", bound=GuidedPass)


def relative_cost(perturbation: Perturbation, num_blocks: int, first_block: int = 0) -> float:
    """Work of a pass from `first_block` on in parts of an unperturbed one's: close enough to say who takes one more."""
    across = SHARE_ACROSS if perturbation.isolate_modalities else 0.0
    own = range(first_block, num_blocks)
    skipped = sum(block in own for block in perturbation.skip_video_self_attention)
    return ((1.0 - across) * len(own) - SHARE_SELF * skipped) / num_blocks


def forks_of(passes: Sequence[GuidedPass], num_blocks: int) -> list[Fork]:
    """Where each of one rank's passes parts from the others; till then it shares their blocks."""
    return forks([(each.context, (each.perturbation,)) for each in passes], num_blocks)


def load(passes: Sequence[GuidedPass], num_blocks: int) -> float:
    """Work of one rank's passes in parts of an unperturbed one's; blocks that they share count once."""
    parting = forks_of(passes, num_blocks)
    return sum(
        relative_cost(each.perturbation, num_blocks, fork.block) for each, fork in zip(passes, parting, strict=True)
    )


def deal(passes: Sequence[Pass], num_ranks: int, num_blocks: int) -> tuple[int, ...]:
    """The rank of each pass such that the busiest has the least to do; of equals, the earlier ranks take more.

    All ways to deal are looked at: a step has four passes at most. Passes that share blocks cost less on one rank.
    """
    return _deal(tuple(passes), num_ranks, num_blocks)


@functools.cache  # the same in every step
def _deal(passes: tuple[Any, ...], num_ranks: int, num_blocks: int) -> tuple[int, ...]:
    ways = itertools.product(range(num_ranks), repeat=len(passes))
    return min(ways, key=lambda owners: busiest(passes, owners, num_ranks, num_blocks))


def busiest(passes: Sequence[Pass], owners: Sequence[int], num_ranks: int, num_blocks: int) -> float:
    """The load of the rank that has the most to do."""
    return max(load(of_rank(passes, owners, rank), num_blocks) for rank in range(num_ranks))


def of_rank(passes: Sequence[Pass], owners: Sequence[int], rank: int) -> list[Pass]:
    return [each for each, owner in zip(passes, owners, strict=True) if owner == rank]


def predict_passes(
    passes: Sequence[Pass],
    predict: Callable[[Sequence[Pass]], Sequence[Pair[Tensor]]],
    like: Pair[Tensor],
    axis: Axis,
    num_blocks: int,
    all_predict: bool = False,
) -> list[Pair[Tensor]]:
    """The result of every pass, in order and bit for bit the same on all ranks; each computed by one.

    `predict` is called once, with all passes of this rank. `like` has the shapes and dtypes of a result. A modality
    that is not enabled in a pass has no result there (None). All ranks of the axis must give the same passes; ranks
    without one only receive, or with `all_predict` predict one for the others' sake.
    """
    if axis.size == 1:
        return list(predict(passes)) if passes else []
    owners = deal(passes, axis.size, num_blocks)
    numbers = [number for number, owner in enumerate(owners) if owner == axis.rank]
    results = predict([passes[number] for number in numbers]) if numbers else []
    if all_predict and passes and not numbers:
        predict(passes[:1])
    own = dict(zip(numbers, results, strict=True))

    def share(number: int, each: Pass) -> Pair[Tensor]:
        def from_owner(shape: Tensor, enabled: bool, computed: Tensor | None) -> Any:
            if not enabled:
                return None
            result = torch.empty_like(shape) if computed is None else computed
            result = result.contiguous()
            axis.broadcast(result, owners[number])
            return result

        return like.map(from_owner, each.enabled, own.get(number, Pair(None, None)))

    return [share(number, each) for number, each in enumerate(passes)]
