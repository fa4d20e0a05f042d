"""How much a step moves between ranks, from shapes alone.

C width of an attention (heads times head dim), U and R ranks of the Ulysses and ring axes, G of the guidance axis
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ltxgen.diffusion.pair import Pair
from ltxgen.models.transformer import Perturbation, TransformerConfig
from ltxgen.parallel.guidance import GuidedPass, deal, forks_of
from ltxgen.parallel.shape import MeshShape, Shards

PARTIAL_BYTES = 4  # partial attention results travel in fp32


@dataclass(frozen=True)
class Traffic:
    """Bytes that one rank receives: the rank that receives the most, if passes are dealt unevenly."""

    ulysses: int = 0
    ring: int = 0
    gather: int = 0  # velocities, along both sequence axes
    guidance: int = 0

    @property
    def total(self) -> int:
        return self.ulysses + self.ring + self.gather + self.guidance

    @property
    def by_kind(self) -> dict[str, int]:
        """What moves at all."""
        return {kind: size for kind, size in vars(self).items() if size}


def step_traffic(
    shape: MeshShape,
    config: TransformerConfig,
    passes: Sequence[GuidedPass],
    tokens: Pair[int],
    bytes_per_value: int,
) -> Traffic:
    """A step of `passes` over one sample of `tokens`, both modalities enabled.

    `tokens` is None for a modality that isn't there. x0 has the dtype of the model, `bytes_per_value` wide. Passes that
    run as one batch, at small shapes, move a little more: what one of them leaves out.
    """
    owners = deal(passes, shape.guidance, config.num_layers)
    x0 = bytes_per_value * sum(
        count * stream.in_channels
        for count, stream in ((tokens.video, config.video), (tokens.audio, config.audio))
        if count is not None
    )

    def of_rank(rank: int) -> Traffic:
        mine = [each for each, owner in zip(passes, owners, strict=True) if owner == rank]
        own = [
            pass_traffic(shape, config, each.perturbation, tokens, bytes_per_value, fork.block)
            for each, fork in zip(mine, forks_of(mine, config.num_layers), strict=True)
        ]
        return Traffic(
            sum(each.ulysses for each in own),
            sum(each.ring for each in own),
            sum(each.gather for each in own),
            x0 * (len(passes) - len(own)),
        )

    return max(map(of_rank, range(shape.guidance)), key=lambda traffic: traffic.total)


def pass_traffic(
    shape: MeshShape,
    config: TransformerConfig,
    perturbation: Perturbation,
    tokens: Pair[int],
    bytes_per_value: int,
    first_block: int,
) -> Traffic:
    """One pass of the transformer from `first_block` on."""
    shards = tokens.map(lambda count: Shards(count, shape.ring, shape.ulysses))
    video, audio, blocks = shards.video, shards.audio, config.num_layers - first_block
    exchange = _Exchange(shape, bytes_per_value)
    ulysses = ring = gather = 0

    def add(times: int, queries: Shards, keys: Shards, width: int, heads: int, few_queries: bool = False) -> None:
        nonlocal ulysses, ring
        ulysses += times * exchange.heads(queries, keys, width)
        ring += times * (exchange.queries(queries, width, heads) if few_queries else exchange.keys(keys, width))

    if video is not None:
        skipped = sum(block >= first_block for block in perturbation.skip_video_self_attention)
        add(blocks - skipped, video, video, config.video.width, config.video.num_heads)
        gather += exchange.whole(video, config.video.out_channels)
    if audio is not None:
        skipped = sum(block >= first_block for block in perturbation.skip_audio_self_attention)
        add(blocks - skipped, audio, audio, config.audio.width, config.audio.num_heads)
        gather += exchange.whole(audio, config.audio.out_channels)
    if video is not None and audio is not None and not perturbation.isolate_modalities:
        width, heads = config.audio.width, config.audio.num_heads
        add(blocks, video, audio, width, heads)
        add(blocks, audio, video, width, heads, few_queries=True)
    return Traffic(ulysses, ring, gather)


@dataclass(frozen=True)
class _Exchange:
    """Bytes that a rank receives in each kind of exchange."""

    shape: MeshShape
    bytes_per_value: int

    def heads(self, queries: Shards, keys: Shards, width: int) -> int:
        """Ulysses: queries, keys and values there, results back; of each a part 1/U stays where it is."""
        U = self.shape.ulysses
        moved = 2 * queries.piece_length + 2 * keys.piece_length
        return moved * width * self.bytes_per_value * (U - 1) // U

    def keys(self, keys: Shards, width: int) -> int:
        """Ring: every other block's keys and values, of this rank's heads."""
        U, R = self.shape.ulysses, self.shape.ring
        return (R - 1) * 2 * keys.block_length * (width // U) * self.bytes_per_value

    def queries(self, queries: Shards, width: int, heads: int) -> int:
        """Every other block's queries, then its partial results for this block's, each with a log-sum-exp."""
        U, R = self.shape.ulysses, self.shape.ring
        there = width // U * self.bytes_per_value
        back = (width // U + heads // U) * PARTIAL_BYTES
        return (R - 1) * queries.block_length * (there + back)

    def whole(self, tokens: Shards, channels: int) -> int:
        """Everyone's piece of a velocity: first of the block, then of all blocks."""
        U, R = self.shape.ulysses, self.shape.ring
        return ((U - 1) * tokens.piece_length + (R - 1) * tokens.block_length) * channels * self.bytes_per_value
