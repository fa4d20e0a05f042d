"""What goes into the transformer, and what all its blocks share.

B batch, T tokens, S text tokens, N axes, K rows, C width, H heads
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ltxgen.models.transformer.rope import RotaryTable


@dataclass(frozen=True, eq=False)
class ModalityInput:
    """One modality's tokens and what conditions them.

    latents         (B, T, channels)
    timesteps       (B, T), or (B, 1) where all tokens share one: denoise mask times sigma, in [0, 1]
    sigma           (B,) noise level of the modality, in [0, 1], whatever the mask
    positions       (B, N, T, 2) bounds [start, end): seconds, then pixels for video's height and width
    context         (B, S, text width)
    context_mask    (B, S): whole numbers or bool, 1 where there is text; or floats to add to the logits
    attention_mask  (B, T, T) in [0, 1], how much a token (row) may attend to another; None is all ones
    enabled         False: the tokens only inform the other modality, and get no velocity
    """

    latents: Tensor
    timesteps: Tensor
    sigma: Tensor
    positions: Tensor
    context: Tensor
    context_mask: Tensor | None = None
    attention_mask: Tensor | None = None
    enabled: bool = True


@dataclass(frozen=True, eq=False)
class CrossInputs:
    """What a modality brings to audio-video attention: as queries for its own update, as keys for the other's."""

    modulation: Tensor  # (B, T or 1, 4, C)
    gate: Tensor  # (B, 1, 1, C)
    rotary: RotaryTable


@dataclass(frozen=True, eq=False)
class StreamInputs:
    """What every block reads of one modality, computed once per pass.

    context            (B, S, C') as attended to, before a block's own modulation of it
    modulation         (B, T or 1, 6 or 9, C)
    prompt_modulation  (B, 1, 2, C'), None where contexts are not modulated by the timestep
    embedded_timestep  (B, T or 1, C), for the output head
    cross              None where the other modality is absent
    """

    enabled: bool
    context: Tensor
    context_bias: Tensor | None
    self_bias: Tensor | None
    modulation: Tensor
    prompt_modulation: Tensor | None
    embedded_timestep: Tensor
    rotary: RotaryTable
    cross: CrossInputs | None


class BlockInputs(NamedTuple):
    """What stays the same from block to block. An absent modality is None."""

    video: StreamInputs | None
    audio: StreamInputs | None


class Hidden(NamedTuple):
    """What changes from block to block: tokens (B, T, C) of each modality. An absent modality is None."""

    video: Tensor | None
    audio: Tensor | None


def context_bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """(B, S) context mask to an additive (B, 1, 1, S) bias."""
    if mask is None:
        return None
    if not mask.is_floating_point():
        mask = (mask.to(dtype) - 1) * torch.finfo(dtype).max
    return mask.to(dtype)[:, None, None, :]


def self_attention_bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """(B, T, T) strengths in [0, 1] to an additive (B, 1, T, T) bias: ln(strength), the dtype's minimum at zero."""
    if mask is None:
        return None
    limits = torch.finfo(dtype)
    bias = mask.float().clamp(min=limits.tiny).log().to(dtype)
    return bias.masked_fill(mask <= 0, limits.min)[:, None]
