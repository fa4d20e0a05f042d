"""What is known of a video or a sound before it is generated, as edits of the state that denoising starts from.

T tokens of a state, n tokens of a condition, C channels. The official ltx_core/conditioning, in both of its states
(`Numerics`): images, keyframes, references and given spans are these two conditions with other tokens.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from ltxgen.diffusion.latents import LatentState
from ltxgen.diffusion.numerics import Numerics
from ltxgen.diffusion.pair import Pair


class Condition(Protocol):
    """Given to a denoise stage, which applies it before noise is added."""

    def apply(self, state: LatentState, numerics: Numerics) -> LatentState: ...


Conditions = Pair[tuple[Condition, ...]]
"""Of each modality, in the order in which they apply."""


@dataclass(frozen=True)
class Appended:
    """What is known of conditions before they are made: how many tokens they append, and the least `attention` that
    references among those have; None where there are none."""

    tokens: int = 0
    attention: float | None = None

    def plus(self, other: Appended) -> Appended:
        attentions = [each.attention for each in (self, other) if each.attention is not None]
        return Appended(self.tokens + other.tokens, min(attentions, default=None))


def joined(several: Iterable[Conditions]) -> Conditions:
    """All of them, in order."""
    start: Conditions = Pair((), ())
    return functools.reduce(lambda one, other: one.map(operator.add, other), several, start)


def weakened(conditions: Conditions, strength: float) -> Conditions:
    """References attended to by `strength` of what they were, other conditions as they are."""

    def of(condition: Condition) -> Condition:
        return condition.weakened(strength) if isinstance(condition, AppendedTokens) else condition

    return conditions.map(lambda several: tuple(map(of, several)))


def total_appended(several: Iterable[Pair[Appended]]) -> Pair[Appended]:
    """What conditions append together."""
    return functools.reduce(lambda one, other: one.map(Appended.plus, other), several, Pair(Appended(), Appended()))


@dataclass(frozen=True, eq=False)
class GivenTokens:
    """Tokens of the latent grid that are known, wholly or in part.

    - `tokens` (1, n, C), normalised, those of the grid from token `start` on.
    - `mask`: what of them is generated all the same, 1 - strength; one for all or (n,), 0 keeps a token.
    """

    tokens: Tensor
    start: int
    mask: float | Tensor

    def apply(self, state: LatentState, numerics: Numerics) -> LatentState:
        given = slice(self.start, self.start + self.tokens.shape[1])
        assert given.stop <= state.num_generated, "given tokens are tokens of the grid"
        tokens, mask = self.tokens.to(state.latents), _per_token(self.mask, self.tokens, state)
        clean, denoise_mask = _with(state.clean, given, tokens), _with(state.denoise_mask, given, mask)
        # By "lerp" the noiser brings the clean tokens in; "scaled" mixes noise with what the latents hold.
        latents = _with(state.latents, given, tokens) if numerics.noising == "scaled" else state.latents
        return state.with_(latents=latents, clean=clean, denoise_mask=denoise_mask)


@dataclass(frozen=True, eq=False)
class AppendedTokens:
    """Tokens that stand after the grid's own, are attended to, and are dropped at the end: keyframes, references.

    - `tokens` (1, n, C), normalised, at `positions` (1, axes, n, 2).
    - `mask`: as of `GivenTokens`.
    - `attention` of references: how much they and the grid's tokens attend to each other, in [0, 1]; one for all or
      (n,). Once it is less than 1 for any condition, tokens that are appended from then on and those before them don't
      attend to each other. Of others None: as all tokens do.
    """

    tokens: Tensor
    positions: Tensor
    mask: float | Tensor
    attention: float | Tensor | None = None

    def apply(self, state: LatentState, numerics: Numerics) -> LatentState:
        tokens, mask = self.tokens.to(state.latents), _per_token(self.mask, self.tokens, state)
        # By "lerp" a token that is generated in part starts from noise alone, as every other one.
        started = tokens if numerics.noising == "scaled" else torch.zeros_like(tokens)
        return state.with_(
            latents=torch.cat([state.latents, started], dim=1),
            clean=torch.cat([state.clean, tokens], dim=1),
            denoise_mask=torch.cat([state.denoise_mask, mask], dim=1),
            positions=torch.cat([state.positions, self.positions.to(state.positions.device)], dim=2),
            attention=self._attention(state),
        )

    def weakened(self, strength: float) -> AppendedTokens:
        """Attended to by `strength` of what they were, if they are references."""
        return self if self.attention is None else dataclasses.replace(self, attention=self.attention * strength)

    def _attention(self, state: LatentState) -> Tensor | None:
        """(1, T + n, T + n), or None where all tokens attend to all."""
        strength = 1.0 if self.attention is None else self.attention
        if not isinstance(strength, Tensor) and strength == 1 and state.attention is None:
            return None
        num_before, num_new = state.latents.shape[1], self.tokens.shape[1]
        with_grid = torch.as_tensor(strength).to(state.latents).expand(num_new)
        before, new, grid = slice(num_before), slice(num_before, None), slice(state.num_generated)
        attention = state.latents.new_zeros(1, num_before + num_new, num_before + num_new)
        attention[:, before, before] = 1 if state.attention is None else state.attention
        attention[:, new, new] = 1
        attention[:, grid, new] = with_grid
        attention[:, new, grid] = with_grid[:, None]
        return attention


@dataclass(frozen=True, eq=False)
class Frozen:
    """A whole modality that isn't generated: its `tokens` (1, T, C), normalised, only inform the other one.

    `role` is one of `LatentState`: a sound from outside is "given", what a retake leaves of its clip "kept".
    """

    tokens: Tensor
    role: Literal["given", "kept"]

    def apply(self, state: LatentState, numerics: Numerics) -> LatentState:
        assert self.tokens.shape == state.latents.shape, "a frozen modality is known as a whole"
        tokens, mask = self.tokens.to(state.latents), torch.zeros_like(state.denoise_mask)
        return state.with_(latents=tokens, clean=tokens, denoise_mask=mask, role=self.role)


def _per_token(mask: float | Tensor, tokens: Tensor, state: LatentState) -> Tensor:
    """(1, n, 1), as a state's denoise mask."""
    return torch.as_tensor(mask).to(state.denoise_mask).expand(tokens.shape[1])[None, :, None]


def _with(whole: Tensor, span: slice, part: Tensor) -> Tensor:
    """A copy of (1, T, ·) that holds `part` in its tokens `span`."""
    edited = whole.clone()
    edited[:, span] = part
    return edited
