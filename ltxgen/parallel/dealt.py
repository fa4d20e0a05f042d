"""A transformer run by the ranks of the guidance axis: whole steps in, the velocities of all passes out.

B batch, T tokens, C width
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ltxgen.diffusion.pair import Pair
from ltxgen.models.transformer import (
    Hidden,
    ModalityInput,
    PassesModel,
    Perturbation,
    Transformer,
    TransformerPass,
    Velocities,
)
from ltxgen.parallel.axes import Axis
from ltxgen.parallel.guidance import Deal, GuidedPass
from ltxgen.parallel.sequence import Sharding, with_tokens

DealPasses = Callable[[Sequence[GuidedPass], Pair[int]], Deal]
"""Who runs which of a step's passes over so many tokens; every rank has the same answer."""


@dataclass(frozen=True, eq=False)
class SharedTail:
    """The end of a pass that all ranks run together: `of_stage` is how they lie in the stage, `of_all` in the tail."""

    transformer: Transformer
    axis: Axis
    of_stage: Sharding
    of_all: Sharding

    def forward_passes(
        self, passes: Sequence[TransformerPass], shared: TransformerPass, block: int, owner: int
    ) -> list[Velocities]:
        """The velocities of `passes`, this rank's own, and then of `shared`, whose blocks before `block` are `owner`'s.

        Its beginning runs with the owner's other passes: they have blocks and texts in common.
        """
        model, whole = self.transformer, Pair(shared.video, shared.audio)
        every, is_owner = range(model.config.num_layers), owner == self.axis.rank
        begun = [*passes, shared] if is_owner else passes
        after: list[Hidden] = []
        with self.of_stage.of(whole) as tokens:
            if begun:
                embedded, inputs = model.embed(tokens.video, tokens.audio)
                blocks = [every[:block] if each is shared else every for each in begun]
                after = model.run_passes(embedded, inputs, [with_tokens(tokens, each) for each in begun], blocks)
            ended = [model.head(each, inputs) for each in after[: len(passes)]]
        own = [self.of_stage.gathered(velocities, whole) for velocities in ended]
        handed_over = self._handed_over(after[-1] if is_owner else None, whole, owner)
        with self.of_all.of(whole) as tokens:
            _, inputs = model.embed(tokens.video, tokens.audio)
            piece = self.of_all.hidden(handed_over)
            (end,) = model.run_passes(piece, inputs, [with_tokens(tokens, shared)], [every[block:]])
            velocities = model.head(end, inputs)
        return [*own, self.of_all.gathered(velocities, whole)]

    def _handed_over(self, hidden: Hidden | None, whole: Pair[ModalityInput], owner: int) -> Hidden:
        """The owner's hidden states of all tokens (B, T, C), on every rank."""
        model = self.transformer

        def place(modality: ModalityInput, width: int) -> Tensor:
            return modality.latents.new_empty((*modality.latents.shape[:2], width), dtype=model.dtype)

        if hidden is None:
            places = whole.map(place, Pair(model.config.video.width, model.config.audio.width))
            handed_over = Hidden(places.video, places.audio)
        else:
            handed_over = Hidden(*self.of_stage.gathered(hidden, whole))
        for x in handed_over:
            if x is not None:
                self.axis.broadcast(x, owner)
        return handed_over


@dataclass(frozen=True, eq=False)
class DealtTransformer:
    """`transformer` runs this rank's passes; the others' results come from their ranks, bit for bit the same on all.

    A velocity has so many `channels` and `dtype`. With `all_predict` a rank without a pass runs one for the others'
    sake. `tail` is there where passes may be dealt with one.
    """

    transformer: PassesModel
    axis: Axis
    deal: DealPasses
    channels: Pair[int]
    dtype: torch.dtype
    all_predict: bool = False
    tail: SharedTail | None = None

    def forward_passes(self, passes: Sequence[TransformerPass]) -> list[Velocities]:
        """As `Transformer.forward_passes`; all ranks of the axis call it with the same passes."""
        dealt = self.deal(_to_deal(passes), Pair(passes[0].video, passes[0].audio).map(_num_tokens))
        numbers = dealt.whole(self.axis.rank)
        own = [passes[number] for number in numbers]
        if dealt.tail is None:
            results = self.transformer.forward_passes(own) if own else []
            if self.all_predict and not own:
                self.transformer.forward_passes(passes[:1])
        else:
            assert self.tail is not None, "dealt with a tail where none can be run"
            number, block = dealt.tail
            results = self.tail.forward_passes(own, passes[number], block, dealt.owners[number])
            numbers.append(number)
        known = dict(zip(numbers, results, strict=True))
        return [self._everywhere(number, each, known.get(number), dealt) for number, each in enumerate(passes)]

    def _everywhere(self, number: int, each: TransformerPass, known: Velocities | None, dealt: Deal) -> Velocities:
        """The velocities of a pass, from its owner unless all ranks have them."""
        if known is not None and dealt.tail is not None and number == dealt.tail.number:
            return known

        def from_owner(modality: ModalityInput, channels: int, computed: Tensor | None) -> Tensor | None:
            if not modality.enabled:
                return None
            shape = (*modality.latents.shape[:2], channels)
            velocity = modality.latents.new_empty(shape, dtype=self.dtype) if computed is None else computed
            velocity = velocity.contiguous()
            self.axis.broadcast(velocity, dealt.owners[number])
            return velocity

        found = Pair(each.video, each.audio).map(from_owner, self.channels, Pair(*(known or (None, None))))
        return found.video, found.audio


class _ToDeal(NamedTuple):
    """What dealing goes by. Contexts are numbered, so that equal steps are equal on every rank."""

    context: int
    perturbation: Perturbation


def _to_deal(passes: Sequence[TransformerPass]) -> tuple[_ToDeal, ...]:
    contexts = list(dict.fromkeys(each.context_key for each in passes))
    return tuple(_ToDeal(contexts.index(each.context_key), each.samples[0]) for each in passes)


def _num_tokens(modality: ModalityInput) -> int:
    return modality.latents.shape[1]
