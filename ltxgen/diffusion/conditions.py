"""What is known of a video or a sound before it is generated, as edits of the state that denoising starts from.

T tokens of a state, n tokens of a condition, C channels. The official ltx_core/conditioning, in both of its states
(`Numerics`): images, keyframes, references and given spans are these two conditions with other tokens.
"""

from __future__ import annotations

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
    """What is known of conditions before they are made: how many tokens they append, and whether attention between
    those and the others has strengths."""

    tokens: int = 0
    attention: bool = False

    def plus(self, other: Appended) -> Appended:
        return Appended(self.tokens + other.tokens, self.attention or other.attention)


def joined(several: Iterable[Conditions]) -> Conditions:
    """All of them, in order."""
    start: Conditions = Pair((), ())
    return functools.reduce(lambda one, other: one.map(operator.add, other), several, start)


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
    - `attention`: how much they and the grid's tokens attend to each other, in [0, 1]; one for all or (n,). With it, or
      once an earlier condition had it, they and what was appended before don't attend to each other. None: as fully as
      all tokens do.
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

    def _attention(self, state: LatentState) -> Tensor | None:
        """(1, T + n, T + n), or None where all tokens attend to all."""
        if self.attention is None and state.attention is None:
            return None
        num_before, num_new = state.latents.shape[1], self.tokens.shape[1]
        strength = 1.0 if self.attention is None else self.attention
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
