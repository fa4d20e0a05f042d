"""What is known of a video or a sound before it is generated: edits of the state that denoising starts from.

n tokens, C channels
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from ltxgen.diffusion.latents import LatentState
from ltxgen.diffusion.numerics import Numerics
from ltxgen.diffusion.pair import Pair


class Condition(Protocol):
    def apply(self, state: LatentState, numerics: Numerics) -> LatentState: ...


Conditions = Pair[tuple[Condition, ...]]


@dataclass(frozen=True)
class GivenTokens:
    """Tokens of the latent grid that are known, wholly or partly.

    tokens  (1, n, C), normalised
    start   the first token of the grid that they stand for
    mask    how much of them is still generated, 1 - strength: for all, or (n,) for each
    """

    tokens: Tensor
    start: int
    mask: float | Tensor

    def apply(self, state: LatentState, numerics: Numerics) -> LatentState:
        where = slice(self.start, self.start + self.tokens.shape[1])
        clean, mask = state.clean.clone(), state.denoise_mask.clone()
        clean[:, where] = self.tokens
        mask[:, where] = torch.as_tensor(self.mask, dtype=mask.dtype, device=mask.device).reshape(1, -1, 1)
        latents = state.latents
        if numerics.noising == "scaled":
            latents = latents.clone()
            latents[:, where] = self.tokens
        return state.with_(latents=latents, clean=clean, denoise_mask=mask)


@dataclass(frozen=True)
class Frozen:
    """A whole modality that isn't generated: its tokens (1, T, C), normalised, only inform the other one.

    `role` is one of `LatentState`: a sound from outside is "given", what a retake leaves of its clip "kept".
    """

    tokens: Tensor
    role: Literal["given", "kept"]

    def apply(self, state: LatentState, numerics: Numerics) -> LatentState:
        assert self.tokens.shape == state.latents.shape, "a frozen modality is known as a whole"
        mask = torch.zeros_like(state.denoise_mask)
        return state.with_(latents=self.tokens, clean=self.tokens, denoise_mask=mask, role=self.role)
