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
    moved: list[tuple[int, Traffic]] = []  # how often, and what
    gather = 0
    if video is not None:
        skipped = sum(block >= first_block for block in perturbation.skip_video_self_attention)
        moved.append((blocks - skipped, exchange.long(video, config.video.width)))
        gather += exchange.whole(video, config.video.out_channels)
    if audio is not None:
        skipped = sum(block >= first_block for block in perturbation.skip_audio_self_attention)
        moved.append((blocks - skipped, exchange.few_keys(audio, config.audio.width)))
        gather += exchange.whole(audio, config.audio.out_channels)
    if video is not None and audio is not None and not perturbation.isolate_modalities:
        moved.append((blocks, exchange.few_keys(audio, config.audio.width)))
        moved.append((blocks, exchange.few_queries(audio, video, config.audio.width, config.audio.num_heads)))
    return Traffic(
        sum(times * each.ulysses for times, each in moved), sum(times * each.ring for times, each in moved), gather
    )


@dataclass(frozen=True)
class _Exchange:
    """Bytes that a rank receives in each kind of exchange."""

    shape: MeshShape
    bytes_per_value: int

    def long(self, tokens: Shards, width: int) -> Traffic:
        """A long sequence with itself: heads of all tokens along Ulysses, keys and values of all blocks in the ring."""
        U, R = self.shape.ulysses, self.shape.ring
        keys = (R - 1) * 2 * tokens.block_length * (width // U) * self.bytes_per_value
        return Traffic(self._heads(tokens, tokens, width), keys)

    def few_keys(self, keys: Shards, width: int) -> Traffic:
        """Every other shard's keys and values: first of the block, then of all blocks."""
        U, R = self.shape.ulysses, self.shape.ring
        pair = 2 * width * self.bytes_per_value
        return Traffic((U - 1) * keys.piece_length * pair, (R - 1) * keys.block_length * pair)

    def few_queries(self, queries: Shards, keys: Shards, width: int, heads: int) -> Traffic:
        """Every other shard's queries along the only axis, or else heads along Ulysses and then the ring's queries."""
        U, R = self.shape.ulysses, self.shape.ring
        if R == 1:
            return Traffic(ulysses=(U - 1) * self._query(width, heads) * queries.piece_length)
        there = self._heads(queries, keys, width) if U > 1 else 0
        return Traffic(there, (R - 1) * self._query(width // U, heads // U) * queries.block_length)

    def _heads(self, queries: Shards, keys: Shards, width: int) -> int:
        """Queries, keys and values there, results back; of each a part 1/U stays where it is."""
        U = self.shape.ulysses
        moved = 2 * queries.piece_length + 2 * keys.piece_length
        return moved * width * self.bytes_per_value * (U - 1) // U

    def _query(self, width: int, heads: int) -> int:
        """A query there, and a partial result back with its log-sum-exp."""
        return width * self.bytes_per_value + (width + heads) * PARTIAL_BYTES

    def whole(self, tokens: Shards, channels: int) -> int:
        """Everyone's piece of a velocity: first of the block, then of all blocks."""
        U, R = self.shape.ulysses, self.shape.ring
        return ((U - 1) * tokens.piece_length + (R - 1) * tokens.block_length) * channels * self.bytes_per_value
