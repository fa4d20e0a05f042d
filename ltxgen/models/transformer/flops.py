"""Arithmetic of one pass, counted from sizes.

C width of the video stream, A of the audio stream, T tokens, S text tokens
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from ltxgen.models.transformer.config import StreamConfig, TransformerConfig


class Flops(NamedTuple):
    """Floating-point operations; a multiplication and its addition are two."""

    linear: int = 0
    attention: int = 0

    @property
    def total(self) -> int:
        return self.linear + self.attention

    def plus(self, other: Flops, times: int = 1) -> Flops:
        return Flops(self.linear + times * other.linear, self.attention + times * other.attention)


def pass_flops(
    config: TransformerConfig,
    video_tokens: int | None,
    audio_tokens: int | None,
    text_tokens: int,
    *,
    across: bool = True,
    num_shards: int = 1,
) -> Flops:
    """What one rank computes of a pass; `across` is whether the streams attend to each other.

    With `num_shards` a rank has its part of the tokens and all of the text. Left out: embeddings, modulation, norms.
    """
    total = Flops()
    for stream, tokens in ((config.video, video_tokens), (config.audio, audio_tokens)):
        if tokens is not None:
            total = total.plus(_stream(stream, tokens, text_tokens, num_shards), config.num_layers)
    if across and video_tokens is not None and audio_tokens is not None:
        total = total.plus(_across(config, video_tokens, audio_tokens, num_shards), config.num_layers)
    return total


def _stream(stream: StreamConfig, T: int, S: int, num_shards: int) -> Flops:
    """Self attention (4 projections), text attention (2 of tokens, 2 of text) and feed-forward (8 C² a token)."""
    C, own = stream.width, math.ceil(T / num_shards)
    linear = 2 * own * (4 + 2 + 8) * C * C + 2 * S * 2 * stream.context_dim * C
    return Flops(linear, 4 * C * (own * T + own * S))


def _across(config: TransformerConfig, T: int, T_audio: int, num_shards: int) -> Flops:
    """Both directions have the audio stream's heads: queries and output of one side, keys and values of the other."""
    C, A = config.video.width, config.audio.width
    own, own_audio = math.ceil(T / num_shards), math.ceil(T_audio / num_shards)
    linear = 2 * own * 4 * C * A + 2 * own_audio * 4 * A * A
    return Flops(linear, 4 * A * (own * T_audio + own_audio * T))


class ByToken(NamedTuple):
    """A number for each token of a kind."""

    video: int = 0
    audio: int = 0
    text: int = 0

    def of(self, video: float, audio: float, text: float) -> float:
        """For so many tokens."""
        return self.video * video + self.audio * audio + self.text * text


class LinearWork(NamedTuple):
    """Of linear layers: the weights, and the values that go in, for each token that passes through."""

    weights: ByToken = ByToken()
    inputs: ByToken = ByToken()


def linear_work(layers: Mapping[str, tuple[int, int]]) -> LinearWork:
    """Of layers within blocks, by name, with shapes (outputs, inputs)."""
    weights, inputs = dict.fromkeys(ByToken._fields, 0), dict.fromkeys(ByToken._fields, 0)
    for name, (rows, columns) in layers.items():
        kind = _tokens_of(*name.split(".")[2:4])
        weights[kind] += rows * columns
        inputs[kind] += columns
    return LinearWork(ByToken(**weights), ByToken(**inputs))


def _tokens_of(part: str, layer: str) -> str:
    """Of which tokens a block's linear layer works: a side that attends has queries and outputs."""
    is_memory = layer in ("to_k", "to_v")
    if part in ("attn2", "audio_attn2") and is_memory:
        return "text"
    if part == "audio_to_video_attn":
        return "audio" if is_memory else "video"
    if part == "video_to_audio_attn":
        return "video" if is_memory else "audio"
    return "audio" if part.startswith("audio_") else "video"


def block_parameters(config: TransformerConfig, *, has_video: bool = True) -> int:
    """Weights of one block's linear layers, which is all of it but a few thousandths; without video of those that are
    for sound alone."""

    def stream(own: StreamConfig) -> int:
        return 14 * own.width**2 + 2 * own.context_dim * own.width

    C, A = config.video.width, config.audio.width
    return stream(config.audio) + (stream(config.video) + 4 * C * A + 4 * A * A if has_video else 0)
