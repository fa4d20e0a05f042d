"""What is being denoised, and the elementary moves on it.

B batch, T tokens, C channels. sigma is the noise level in [0, 1]: x = (1 - sigma)·x0 + sigma·noise, and the model
predicts the velocity noise - x0. Arithmetic is fp32 and each result is rounded to the run's dtype, as in the official
code (ltx_core/utils.py, components/noisers.py).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ltxgen.diffusion.numerics import Numerics


@dataclass(frozen=True)
class LatentState:
    """One modality's tokens on their way from noise to clean.

    - `latents` (B, T, C): the tokens now.
    - `clean` (B, T, C): what conditioned tokens are known to be; elsewhere not used.
    - `denoise_mask` (B, T, 1) fp32: 1 for a generated token, 0 for a given one, between for a partly given one.
    - `positions` (B, axes, T, 2): each token's bounds [start, end) in seconds and pixels.
    - `num_generated`: tokens of the latent grid; conditioning tokens appended after them are dropped at the end.
    - `attention` (B, T, T) in [0, 1]: how much a token (row) attends to another; None is all ones.
    - `role`: what isn't "generated" has a mask of 0 throughout and informs the other modality. "given" comes from
      outside and reads the prompt in every pass, "kept" is what a retake leaves of its clip.
    """

    latents: Tensor
    clean: Tensor
    denoise_mask: Tensor
    positions: Tensor
    num_generated: int
    attention: Tensor | None = None
    role: Literal["generated", "given", "kept"] = "generated"

    @classmethod
    def from_tokens(cls, latents: Tensor, positions: Tensor) -> LatentState:
        """A state in which every token is generated, from `latents` (zeros where nothing precedes)."""
        num_samples, num_tokens, _ = latents.shape
        mask = torch.ones(num_samples, num_tokens, 1, dtype=torch.float32, device=latents.device)
        return cls(latents, latents, mask, positions, num_tokens)

    def with_(self, **changes: Any) -> LatentState:
        return dataclasses.replace(self, **changes)

    def without_appended(self) -> LatentState:
        """The latent grid's own tokens."""
        kept = slice(0, self.num_generated)
        return self.with_(
            latents=self.latents[:, kept],
            clean=self.clean[:, kept],
            denoise_mask=self.denoise_mask[:, kept],
            positions=self.positions[:, :, kept],
            attention=None,
        )

    def timesteps(self, sigma: float) -> Tensor:
        """Each token's own noise level, mask·sigma: (B, T) fp32."""
        return self.denoise_mask.squeeze(-1) * sigma

    def modality_sigma(self, sigma: float, numerics: Numerics) -> float:
        """The noise level that the modality as a whole reports."""
        return 0.0 if self.role != "generated" and numerics.frozen_sigma == "zero" else sigma

    @property
    def result(self) -> Tensor:
        """The grid's tokens at the end; of a modality that isn't generated those it came as, to the bit."""
        own = self.without_appended()
        return own.latents if self.role == "generated" else own.clean


@dataclass(frozen=True)
class NoiseLevels:
    """The distinct values of a denoise mask, usually one or two: tokens of one value share a timestep.

    - `values` (B, L) fp32.
    - `index` (B, T): which of them is each token's; None where there is only one.
    """

    values: Tensor
    index: Tensor | None

    @classmethod
    def of(cls, denoise_mask: Tensor) -> NoiseLevels:
        """Of a mask (B, T, 1). Waits for the device to know how many there are: do it once, not every step."""
        values, index = denoise_mask.squeeze(-1).unique(return_inverse=True)
        return cls(values.expand(len(denoise_mask), -1), index if len(values) > 1 else None)

    def timesteps(self, sigma: float) -> Tensor:
        """Each level's own, mask·sigma: (B, L) fp32."""
        return self.values * sigma


def apply_noise(state: LatentState, noise: Tensor, scale: float, numerics: Numerics) -> LatentState:
    """Noise a state up to sigma = `scale`; given tokens stay clean. `noise` (B, T, C) is standard normal.

    "lerp" mixes latents with noise, then the clean tokens in by the mask; "scaled" lets the mask scale the noise. They
    differ for tokens with a mask between 0 and 1, and where `latents` and `clean` differ. A modality that is kept may
    start from noise all the same (`Numerics.kept_start`).
    """
    latents, clean, noise = state.latents.float(), state.clean.float(), noise.float()
    if state.role == "kept" and numerics.kept_start == "noise":
        noised = torch.lerp(latents, noise, scale)
    elif numerics.noising == "lerp":
        noised = torch.lerp(clean, torch.lerp(latents, noise, scale), state.denoise_mask)
    else:
        weight = state.denoise_mask * scale
        noised = noise * weight + latents * (1 - weight)
    return state.with_(latents=noised.to(state.latents.dtype))


def blend_clean(x0: Tensor, state: LatentState) -> Tensor:
    """A prediction x0 (B, T, C) with the given tokens put back by the mask. Keeps a dtype wider than fp32."""
    mask = state.denoise_mask
    generated = x0.to(torch.promote_types(x0.dtype, mask.dtype))
    return (generated * mask + state.clean.float() * (1 - mask)).to(x0.dtype)


def to_denoised(latents: Tensor, velocity: Tensor, timesteps: Tensor) -> Tensor:
    """x0 = x - v·t per token, `timesteps` (B, T). A token at t = 0 returns itself."""
    return (latents.float() - velocity.float() * timesteps.float().unsqueeze(-1)).to(latents.dtype)


def to_velocity(latents: Tensor, x0: Tensor, sigma: float) -> Tensor:
    """v = (x - x0) / sigma, rounded to the latents' dtype; sigma must not be 0."""
    assert sigma != 0, "there is no velocity at sigma 0"
    return ((latents.float() - x0.float()) / sigma).to(latents.dtype)
