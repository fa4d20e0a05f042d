"""What the transformer reads of a prompt."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Context:
    """One prompt: `video` (1, S, D_video) and `audio` (1, S, D_audio), S = 1024 text positions.

    `video` is None in recipes of sound alone.
    """

    video: Tensor | None
    audio: Tensor


@dataclass(frozen=True)
class Contexts:
    """The prompt and, where guidance asks for it, the negative prompt."""

    positive: Context
    negative: Context | None
