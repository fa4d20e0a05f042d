"""The passes of one guided step: what they share, where they part, which run as one batch.

B batch, T tokens, C width
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ltxgen.models.transformer.inputs import Hidden, ModalityInput, Texts
from ltxgen.models.transformer.perturbation import Perturbation

BATCHED_TOKENS = 4096
BATCHED_PASSES = 3
"""At least so many passes of up to so many video tokens, of a rank's own, run as one batch; two do where steps can't be
recorded as CUDA graphs.

On an H100, four passes of 1536 tokens took 277 ms in a batch and 287 one by one, recorded; 279 and 654 launched by the
host. Of 6144 tokens 1142 and 1096. Of two of 1536, one with isolated modalities, ranks took 177 ms and, one by one and
with a shared end, 158."""


@dataclass(frozen=True, eq=False)
class TransformerPass:
    """One pass of a step. Passes of one step differ in contexts and perturbation, everything else is the same tensors.

    `perturbation` holds for the whole batch, or a sequence of B for one sample each.
    """

    video: ModalityInput | None
    audio: ModalityInput | None
    perturbation: Perturbation | Sequence[Perturbation] = Perturbation()  # noqa: RUF009 - frozen

    @property
    def samples(self) -> tuple[Perturbation, ...]:
        """One perturbation for all samples, or one each."""
        return (self.perturbation,) if isinstance(self.perturbation, Perturbation) else tuple(self.perturbation)

    @property
    def context_key(self) -> tuple[int | None, ...]:
        """Equal for passes that read the same texts."""
        texts = [(each.context, each.context_mask) for each in (self.video, self.audio) if each is not None]
        return tuple(None if x is None else id(x) for pair in texts for x in pair)

    def has_tokens_of(self, other: "TransformerPass") -> bool:
        return _same_tokens(self.video, other.video) and _same_tokens(self.audio, other.audio)


class Fork(NamedTuple):
    """Where a pass begins to differ: up to `block` it is the pass `source`, an earlier one or, at block 0, itself."""

    source: int
    block: int


def forks(passes: Sequence[tuple[object, Sequence[Perturbation]]], num_blocks: int) -> list[Fork]:
    """The fork of each pass, given its context (compared with ==) and its samples' perturbations.

    A pass that equals an earlier one throughout forks at `num_blocks`.
    """

    def agree_until(one: int, other: int) -> int:
        (context, samples), (other_context, other_samples) = passes[one], passes[other]
        if context != other_context or len(samples) != len(other_samples):
            return 0
        pairs = zip(samples, other_samples, strict=True)
        return min(mine.agrees_until(theirs, num_blocks) for mine, theirs in pairs)

    found = []
    for number in range(len(passes)):
        candidates = [Fork(source, agree_until(number, source)) for source in range(number)]
        longest = max(candidates, key=lambda fork: fork.block, default=Fork(number, 0))
        found.append(longest if longest.block else Fork(number, 0))
    return found


class Shortcut(Protocol):
    """May take the place of a step's blocks from `num_blocks` on, of which the transformer has more."""

    num_blocks: int

    def end(self, embedded: Hidden, hidden: Sequence[Hidden]) -> list[Hidden] | None:
        """Each pass's hidden states after all blocks, given them before any and after the first `num_blocks`; None for
        the other blocks to run. The same object for passes that don't differ yet."""
        ...

    def ended(self, hidden: Sequence[Hidden]) -> None:
        """Told each pass's hidden states after all blocks, when all have run."""
        ...


def started(hidden: Sequence[Hidden], parting: Sequence[Fork], block: int) -> list[Hidden]:
    """The passes' hidden states before `block`, with those that fork there or later at their source's."""
    found = list(hidden)
    for number, fork in enumerate(parting):
        if fork.block >= block:
            found[number] = found[fork.source]
    return found


def join(hidden: Sequence[Hidden]) -> Hidden:
    """Passes as one batch; the very object if there is one."""
    if len(hidden) == 1:
        return hidden[0]
    video, audio = (None if tensors[0] is None else torch.cat(list(tensors)) for tensors in zip(*hidden, strict=True))
    return Hidden(video, audio)


def split(hidden: Hidden, num_passes: int) -> list[Hidden]:
    """The inverse of `join`."""

    def pieces(x: Tensor | None) -> Sequence[Tensor | None]:
        return [None] * num_passes if x is None else x.chunk(num_passes)

    return [Hidden(*each) for each in zip(pieces(hidden.video), pieces(hidden.audio), strict=True)]


def batch_limit(num_passes: int, limit: int | None = None, *, recorded: bool = True) -> int:
    """The most video tokens with which so many passes run as one batch: `limit`, or by the measured rule."""
    if limit is not None:
        return limit
    return BATCHED_TOKENS if num_passes >= BATCHED_PASSES or not recorded else 0


def can_join(hidden: Hidden, texts: Sequence[Texts], limit: int | None) -> bool:
    """Whether passes with these `texts` run as one batch: one sample each, with texts of one shape.

    Isolated modalities join as well. Of their pass an eighth is wasted then, audio-video attention computed and
    dropped, which is less than what a pass gains by not running alone.
    """
    num_tokens = 0 if hidden.video is None else hidden.video.shape[1]
    num_samples = {x.shape[0] for x in hidden if x is not None}
    fits = num_tokens <= batch_limit(len(texts), limit)
    return fits and num_samples == {1} and len({_shape(text) for text in texts}) == 1


def _shape(texts: Texts) -> tuple[object, ...]:
    return tuple(None if text is None else (text.context.shape, text.bias is None) for text in texts)


def _same_tokens(one: ModalityInput | None, other: ModalityInput | None) -> bool:
    if one is None or other is None:
        return one is other
    names = [field.name for field in dataclasses.fields(one) if not field.name.startswith("context")]
    return all(getattr(one, name) is getattr(other, name) for name in names)
