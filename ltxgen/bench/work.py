"""What the transformer has to compute, counted from its sizes: the other half of a floor in milliseconds.

A multiplication and an addition are two operations. Counted are matrix products and attention; norms, modulation and
RoPE move memory and are left out, so the floor is one for perfect fusion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ltxgen.bench.ceilings import Ceilings
from ltxgen.diffusion.pair import Pair
from ltxgen.guidance.protocol import Pass
from ltxgen.models.transformer import Perturbation, TransformerConfig
from ltxgen.models.transformer.adaln import SINUSOID_DIM
from ltxgen.models.transformer.config import StreamConfig

PLAIN = Pass("text", "positive", Perturbation(), Pair(True, True))


@dataclass(frozen=True)
class Work:
    """Floating point operations by the unit that bounds them."""

    gemm: int = 0
    attention: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.gemm + other.gemm, self.attention + other.attention)

    def __mul__(self, times: int) -> Work:
        return Work(self.gemm * times, self.attention * times)

    @property
    def total(self) -> int:
        return self.gemm + self.attention

    def milliseconds(self, ceilings: Ceilings, dtype: str) -> float | None:
        """The least time on a machine with these ceilings; None if its matrix rate in `dtype` was not measured."""
        rate = ceilings.gemm.get(dtype)
        return None if rate is None else 1000 * (self.gemm / rate + self.attention / ceilings.attention)


def step_work(config: TransformerConfig, passes: Sequence[Pass], tokens: Pair[int], text_tokens: int) -> Work:
    """What the passes of one step can't do without, given that they see the same latents and timesteps.

    A pass that differs from an earlier one only from some block on starts there, passes with the same contexts share
    their keys and values, and what comes before the blocks is done once (caption projections: once a context).
    """
    work = _once(config, tokens)
    for number, each in enumerate(passes):
        first = each.perturbation.first_block or 0
        resumes = any(_same_but_for_perturbation(each, earlier) for earlier in passes[:number])
        for block in range(first if resumes else 0, config.num_layers):
            work += _block(config, each.perturbation, block, tokens, text_tokens)
        work += _heads(config, tokens)
    num_contexts = len({each.context for each in passes})
    return work + _contexts(config, text_tokens) * num_contexts


def _same_but_for_perturbation(one: Pass, other: Pass) -> bool:
    unperturbed = other.perturbation.first_block is None
    return unperturbed and one.context == other.context and one.enabled == other.enabled


def _linear(tokens: int, inputs: int, outputs: int) -> Work:
    return Work(gemm=2 * tokens * inputs * outputs)


def _streams(config: TransformerConfig, tokens: Pair[int]) -> tuple[tuple[StreamConfig, int], ...]:
    assert tokens.video is not None
    assert tokens.audio is not None
    return (config.video, tokens.video), (config.audio, tokens.audio)


def _once(config: TransformerConfig, tokens: Pair[int]) -> Work:
    """Patchify projections and the timestep's rows."""
    work = Work()
    for stream, count in _streams(config, tokens):
        width = stream.width
        work += _linear(count, stream.in_channels, width)
        for rows in (config.num_modulation_rows, 4, 1):
            work += _timestep_rows(width, rows)
        if config.prompt_adaln:
            work += _timestep_rows(stream.context_dim, 2)
    return work


def _timestep_rows(width: int, rows: int) -> Work:
    return _linear(1, SINUSOID_DIM, width) + _linear(1, width, width) + _linear(1, width, rows * width)


def _contexts(config: TransformerConfig, text_tokens: int) -> Work:
    """Keys and values of one prompt in all blocks, and the projection of its captions."""
    work = Work()
    for stream in (config.video, config.audio):
        work += _linear(text_tokens, stream.context_dim, stream.width) * (2 * config.num_layers)
        if config.caption_channels is not None:
            work += _linear(text_tokens, config.caption_channels, stream.width)
            work += _linear(text_tokens, stream.width, stream.width)
    return work


def _heads(config: TransformerConfig, tokens: Pair[int]) -> Work:
    work = Work()
    for stream, count in _streams(config, tokens):
        work += _linear(count, stream.width, stream.out_channels)
    return work


def _block(
    config: TransformerConfig, perturbation: Perturbation, block: int, tokens: Pair[int], text_tokens: int
) -> Work:
    """One block without the keys and values of the text."""
    skips = (perturbation.skip_video_self_attention, perturbation.skip_audio_self_attention)
    work = Work()
    for (stream, count), skipped in zip(_streams(config, tokens), skips, strict=True):
        width = stream.width
        self_attends = block not in skipped
        # Values and output always; queries and keys where there is attention to compute.
        work += _linear(count, width, width) * (4 if self_attends else 2)
        if self_attends:
            work += _attention(stream, count, count)
        work += _linear(count, width, width) * 2 + _attention(stream, count, text_tokens)
        work += _linear(count, width, 4 * width) * 2
        if config.gated_attention:
            work += _linear(count, width, stream.num_heads) * 2
    return work if perturbation.isolate_modalities else work + _across(config, tokens)


def _across(config: TransformerConfig, tokens: Pair[int]) -> Work:
    """Both directions of audio-video attention, which is as wide as the audio stream inside."""
    streams = _streams(config, tokens)
    inner = config.audio.width
    work = Work()
    for (own, queries), (other, keys) in (streams, streams[::-1]):
        work += _linear(queries, own.width, inner) * 2 + _linear(keys, other.width, inner) * 2
        work += _attention(config.audio, queries, keys)
        if config.gated_attention:
            work += _linear(queries, own.width, config.audio.num_heads)
    return work


def _attention(heads: StreamConfig, queries: int, keys: int) -> Work:
    return Work(attention=4 * queries * keys * heads.width)
