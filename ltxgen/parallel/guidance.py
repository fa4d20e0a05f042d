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
    skipped = sum(block >= first_block for block in perturbation.skip_video_self_attention)
    return ((1.0 - across) * (num_blocks - first_block) - SHARE_SELF * skipped) / num_blocks


def forks_of(passes: Sequence[GuidedPass], num_blocks: int) -> list[Fork]:
    """Where each of one rank's passes parts from the others; till then it shares their blocks."""
    return forks([(each.context, (each.perturbation,)) for each in passes], num_blocks)


def deal(passes: Sequence[GuidedPass], num_ranks: int, num_blocks: int) -> tuple[int, ...]:
    """The rank of each pass such that the busiest has the least to do; of equals, the earlier ranks take more.

    All ways to deal are looked at: a step has four passes at most. Passes that share blocks cost less on one rank.
    """
    return _deal(tuple((each.context, each.perturbation) for each in passes), num_ranks, num_blocks)


@functools.cache
def _deal(passes: tuple[tuple[Any, Perturbation], ...], num_ranks: int, num_blocks: int) -> tuple[int, ...]:
    @functools.cache
    def load(own: tuple[int, ...]) -> float:
        parting = forks([(passes[number][0], (passes[number][1],)) for number in own], num_blocks)
        return sum(
            relative_cost(passes[number][1], num_blocks, fork.block) for number, fork in zip(own, parting, strict=True)
        )

    def longest(owners: tuple[int, ...]) -> float:
        ranks = range(num_ranks)
        return max(load(tuple(n for n, owner in enumerate(owners) if owner == rank)) for rank in ranks)

    return min(itertools.product(range(num_ranks), repeat=len(passes)), key=longest)


def predict_passes(
    passes: Sequence[Pass],
    predict: Callable[[Sequence[Pass]], Sequence[Pair[Tensor]]],
    like: Pair[Tensor],
    axis: Axis,
    num_blocks: int,
) -> list[Pair[Tensor]]:
    """The result of every pass, in order and bit for bit the same on all ranks; each computed by one.

    `predict` is called once, with all passes of this rank. `like` has the shapes and dtypes of a result. A modality
    that is not enabled in a pass has no result there (None). All ranks of the axis must give the same passes; ranks
    without one only receive.
    """
    if axis.size == 1:
        return list(predict(passes)) if passes else []
    owners = deal(passes, axis.size, num_blocks)
    numbers = [number for number, owner in enumerate(owners) if owner == axis.rank]
    results = predict([passes[number] for number in numbers]) if numbers else []
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
