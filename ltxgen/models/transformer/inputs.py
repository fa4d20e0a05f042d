"""What goes into the transformer, and what all its blocks share.

B batch, T tokens, L timesteps, S text tokens, N axes, K rows, C width, H heads
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ltxgen.models.transformer.adaln import Modulation
from ltxgen.models.transformer.rope import RotaryTable


@dataclass(frozen=True, eq=False)
class ModalityInput:
    """One modality's tokens and what conditions them.

    latents         (B, T, channels)
    timesteps       (B, L): denoise mask times sigma, in [0, 1]; L is T, or 1 where all tokens share one
    timestep_index  (B, T) int64: which of L timesteps is each token's, where many tokens share a few
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
    timestep_index: Tensor | None = None
    context_mask: Tensor | None = None
    attention_mask: Tensor | None = None
    enabled: bool = True


@dataclass(frozen=True, eq=False)
class CrossInputs:
    """What a modality brings to audio-video attention: as queries for its own update, as keys for the other's."""

    modulation: Modulation  # 4 rows
    gate: Modulation  # 1 row, for all tokens
    rotary: RotaryTable


@dataclass(frozen=True, eq=False)
class StreamInputs:
    """What every block reads of one modality beside its text, computed once a step.

    self_bias          (B, 1, T, T) to add to the logits of self attention
    modulation         6 or 9 rows
    embedded_timestep  1 row, for the output head
    cross              None where the other modality is absent
    """

    enabled: bool
    self_bias: Tensor | None
    modulation: Modulation
    embedded_timestep: Modulation
    rotary: RotaryTable
    cross: CrossInputs | None


class BlockInputs(NamedTuple):
    """What stays the same from block to block. An absent modality is None."""

    video: StreamInputs | None
    audio: StreamInputs | None


@dataclass(frozen=True, eq=False)
class TextInputs:
    """What every block reads of one modality's text, computed once a step and context.

    context     (B, S, C') as attended to, before a block's own modulation of it
    bias        (B, 1, 1, S) to add to the logits
    modulation  2 rows for all tokens, None where contexts are not modulated by the timestep
    """

    context: Tensor
    bias: Tensor | None
    modulation: Modulation | None


class Texts(NamedTuple):
    """Both modalities' text. None for a modality that is absent or not enabled."""

    video: TextInputs | None
    audio: TextInputs | None


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
