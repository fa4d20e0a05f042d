"""The first block always computed; the others only when what it adds has changed, else what they added last time.

With h_n the hidden states after the first n blocks, h_N those after all, and a star for the last time that all ran:

    change = sum |(h_n - h_0) - (h_n - h_0)*| / sum |(h_n - h_0)*|
    h_N    = h_n + (h_N - h_n)*     where every pass's and modality's change is below the threshold

As the first-block cache of ParaAttention (https://github.com/chengzeyi/ParaAttention) and, with more than one block,
DBCache of Cache-DiT (https://github.com/vipshop/cache-dit); the idea is TeaCache's (https://arxiv.org/abs/2411.19108),
which needs a polynomial fitted to each model. Passes decide together: guidance multiplies their differences, so that a
new text pass beside an old negative one would be worse than two old ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any, ClassVar, TypeGuard

import torch
from torch import Tensor

from ltxgen.config.errors import Problem
from ltxgen.config.schema import NonNegativeFloat, PositiveInt
from ltxgen.diffusion.pair import Pair
from ltxgen.models.transformer import Hidden, PassesModel, Transformer, TransformerPass, Velocities
from ltxgen.registry import register
from ltxgen.reuse.protocol import Prediction, Ranks, Span


@register("reuse", "first_block")
@dataclass(frozen=True)
class FirstBlockConfig(Span):
    """`threshold`: of the change from which on all blocks run, 0 for always; `max_skips`: how often in a row they may
    not; `blocks`: how many first ones are always computed."""

    threshold: NonNegativeFloat = 0.08
    max_skips: PositiveInt = 3
    blocks: PositiveInt = 1

    kept_hidden: ClassVar = 2
    decides: ClassVar = True

    def build(self, ranges: Sequence[int]) -> FirstBlock:
        return FirstBlock(self, self.of(len(ranges)))

    def evaluated(self, ranges: Sequence[int]) -> Sequence[bool]:
        return [True] * len(ranges)

    def note(self, ranges: Sequence[int]) -> str:
        span = self.of(len(ranges))
        after_another = len(span) if span.start else max(0, len(span) - 1)
        most = after_another - after_another // (self.max_skips + 1)
        run = "the first block" if self.blocks == 1 else f"the first {self.blocks} blocks"
        return (
            f"first_block, an approximation: up to {most} of {len(ranges)} evaluations may run {run} alone, as they "
            "come to decide; passes and seconds here are those of none that does"
        )

    def problems(self, path: str, num_blocks: int) -> list[Problem]:
        problems = self.span_problems(path)
        if self.blocks >= num_blocks:
            message = f"must be less than {num_blocks}, the blocks of this transformer"
            problems.append(Problem(f"{path}.blocks", self.blocks, message))
        return problems


@dataclass
class Ran:
    """A pass when all its blocks last ran: what the first of them added to its tokens, what the others did, and how
    often it went without them since."""

    texts: tuple[Tensor, ...]  # held with it, so that no other takes their ids
    first: Hidden
    others: Hidden
    skips: int = 0


class FirstBlock:
    """Decides anew in every evaluation of the span. On a GPU the host then waits for the first block to have run."""

    def __init__(self, config: FirstBlockConfig, span: range) -> None:
        self.config = config
        self.span = span
        self.in_span = False
        self.state: Any = None
        self.decisions: list[bool] = []  # of this evaluation's calls: whether the other blocks were skipped
        self.changes: list[float] = []  # on which they were made
        self._evaluations = {True: 0, False: 0}

    def wrap(self, transformer: Transformer, ranks: Ranks) -> PassesModel:
        return FirstBlockTransformer(transformer, self, ranks)

    def predict(self, number: int, sigma: float, evaluate: Callable[[], Prediction]) -> Pair[Tensor]:
        self.in_span = number in self.span
        self.decisions.clear()
        x0 = evaluate().x0
        if self.decisions:  # none where guidance repeats its last prediction
            self._evaluations[all(self.decisions)] += 1
        return x0

    @property
    def facts(self) -> Mapping[str, Any]:
        numbers = {"all blocks": self._evaluations[False], "first blocks alone": self._evaluations[True]}
        return {**numbers, "changes": [round(change, 4) for change in self.changes]}


class FirstBlockTransformer:
    """A transformer whose other blocks run if they are due."""

    def __init__(self, transformer: Transformer, reuse: FirstBlock, ranks: Ranks) -> None:
        self.transformer = transformer
        self.reuse = reuse
        self.ranks = ranks
        self.ran: dict[tuple[object, ...], Ran] = {}

    def forward_passes(self, passes: Sequence[TransformerPass]) -> list[Velocities]:
        """As `Transformer.forward_passes`; all ranks of a stage call it together."""
        return self.transformer.forward_passes(passes, Call(self, passes))

    def may_skip(self, passes: Sequence[TransformerPass], first: Sequence[Hidden], known: Sequence[Ran | None]) -> bool:
        """Whether passes to whose tokens the first blocks added `first` go without the others: all ranks or none."""
        config = self.reuse.config
        if not self.reuse.in_span:
            return False
        if _all_fresh(known, config.max_skips):
            change = self._change(passes, first, known)
        else:
            change = torch.full((1,), inf, device=_first_tensor(first).device)
        largest = self.ranks.largest(change).item()
        if isfinite(largest):  # nor is it where the first blocks added nothing: 0 / 0
            self.reuse.changes.append(largest)
        return largest < config.threshold

    def _change(self, passes: Sequence[TransformerPass], first: Sequence[Hidden], known: Sequence[Ran]) -> Tensor:
        """(1,): the largest, among passes and modalities, of this rank's passes."""
        pairs = zip(passes, first, (ran.first for ran in known), strict=True)
        distinct = {(id(now), id(before)): (each, now, before) for each, now, before in pairs}
        sums = []
        for each, now, before in distinct.values():
            own, reference = self.ranks.own_tokens(Pair(*now)), self.ranks.own_tokens(Pair(*before))
            for name in ("video", "audio"):
                modality = getattr(each, name)
                if modality is not None and modality.enabled:
                    one, other = getattr(own, name), getattr(reference, name)
                    sums.append(torch.stack([_sum_of_sizes(one - other), _sum_of_sizes(other)]))
        changes, sizes = self.ranks.summed(torch.stack(sums)).unbind(1)
        return (changes / sizes).amax(0, keepdim=True)


class Call:
    """One call of the transformer, from its first blocks to its end (`models.transformer.Shortcut`)."""

    def __init__(self, owner: FirstBlockTransformer, passes: Sequence[TransformerPass]) -> None:
        self.num_blocks = owner.reuse.config.blocks
        self._owner = owner
        self._passes = passes
        self._kinds = list(map(_kind, passes))
        self._begun: Sequence[Hidden] = ()
        self._first: Sequence[Hidden] = ()

    def end(self, embedded: Hidden, hidden: Sequence[Hidden]) -> list[Hidden] | None:
        added = {id(each): _minus(each, embedded) for each in hidden}  # passes that have not parted yet share theirs
        first, ran = [added[id(each)] for each in hidden], self._owner.ran
        skips = self._owner.may_skip(self._passes, first, [ran.get(kind) for kind in self._kinds])
        self._owner.reuse.decisions.append(skips)
        if skips:
            for kind in set(self._kinds):
                ran[kind].skips += 1
            return [_plus(each, ran[kind].others) for each, kind in zip(hidden, self._kinds, strict=True)]
        for kind in self._kinds:
            ran.pop(kind, None)  # not held beside what takes its place
        self._begun, self._first = hidden, first
        return None

    def ended(self, hidden: Sequence[Hidden]) -> None:
        each_pass = zip(self._kinds, self._passes, self._begun, self._first, hidden, strict=True)
        for kind, each, begun, first, end in each_pass:
            self._owner.ran[kind] = Ran(_texts(each), first, _minus(end, begun))


def _all_fresh(known: Sequence[Ran | None], max_skips: int) -> TypeGuard[Sequence[Ran]]:
    return all(ran is not None and ran.skips < max_skips for ran in known)


def _kind(each: TransformerPass) -> tuple[object, ...]:
    """Equal for the same pass of different steps."""
    enabled = (modality is not None and modality.enabled for modality in (each.video, each.audio))
    return (each.context_key, each.samples, *enabled)


def _texts(each: TransformerPass) -> tuple[Tensor, ...]:
    modalities = [modality for modality in (each.video, each.audio) if modality is not None]
    found = [text for modality in modalities for text in (modality.context, modality.context_mask)]
    return tuple(text for text in found if text is not None)


def _minus(one: Hidden, other: Hidden) -> Hidden:
    return Hidden(*(None if x is None or y is None else x - y for x, y in zip(one, other, strict=True)))


def _plus(one: Hidden, other: Hidden) -> Hidden:
    return Hidden(*(None if x is None or y is None else x + y for x, y in zip(one, other, strict=True)))


def _sum_of_sizes(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, 1, dtype=torch.float32)


def _first_tensor(hidden: Sequence[Hidden]) -> Tensor:
    return next(x for x in hidden[0] if x is not None)
