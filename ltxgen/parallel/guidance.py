"""The passes of a guided step, dealt to the ranks of the guidance axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ltxgen.diffusion.pair import Pair
from ltxgen.models.transformer import Perturbation
from ltxgen.parallel.axes import Axis

# Of a block's work on its video tokens, by multiplications with weights (C the width, audio's half of it): 4C² in self
# attention, 2C² in text attention (queries and output), 2C² towards and from the audio, 8C² in the feed-forward.
SHARE_ACROSS = 2 / 16  # what isolated modalities leave out
SHARE_SELF = 2 / 16  # queries and keys, which a value that passes through does not need


class GuidedPass(Protocol):
    """What this needs to know of a pass."""

    @property
    def perturbation(self) -> Perturbation: ...
    @property
    def enabled(self) -> Pair[bool]: ...


Pass = TypeVar("Pass", bound=GuidedPass)


def relative_cost(perturbation: Perturbation, num_blocks: int) -> float:
    """Work of a pass in parts of an unperturbed one's: close enough to say which rank can take one more."""
    across = SHARE_ACROSS if perturbation.isolate_modalities else 0.0
    return 1.0 - across - SHARE_SELF * len(perturbation.skip_video_self_attention) / num_blocks


def deal(costs: Sequence[float], num_ranks: int) -> tuple[int, ...]:
    """The rank of each pass: dearest first, each to the rank with the least to do so far, the lowest of equals."""
    loads = [0.0] * num_ranks
    owners = [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        owners[index] = loads.index(min(loads))
        loads[owners[index]] += costs[index]
    return tuple(owners)


def repeats(owners: Sequence[int], rank: int) -> tuple[int, ...]:
    """The passes that a rank runs on top of its own, to run as many as the rank with the most; their results are not
    needed. Where weights are sharded, the ranks gather them from each other in every pass."""
    return (0,) * (max(map(owners.count, owners), default=0) - owners.count(rank))


def predict_passes(
    passes: Sequence[Pass],
    predict: Callable[[int, Pass], Pair[Tensor]],
    like: Pair[Tensor],
    axis: Axis,
    num_blocks: int,
    equally_many: bool = False,
) -> list[Pair[Tensor]]:
    """`predict(number, pass)` of every pass, in order and bit for bit the same on all ranks; each computed by one.

    `like` has the shapes and dtypes of a result. A modality that is not enabled in a pass has no result there (None).
    All ranks of the axis must give the same passes; ranks without one only receive, or with `equally_many` run one for
    the others' sake.
    """
    if axis.size == 1:
        return [predict(number, each) for number, each in enumerate(passes)]
    owners = deal([relative_cost(each.perturbation, num_blocks) for each in passes], axis.size)
    own = {number: predict(number, each) for number, each in enumerate(passes) if owners[number] == axis.rank}
    for number in repeats(owners, axis.rank) if equally_many else ():
        predict(number, passes[number])

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
