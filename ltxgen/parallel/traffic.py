"""How much a step moves between ranks, from shapes alone.

C width of an attention (heads times head dim), U and R ranks of the Ulysses and ring axes, G of the guidance axis
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ltxgen.diffusion.pair import Pair
from ltxgen.models.transformer import Perturbation, TransformerConfig
from ltxgen.parallel.guidance import Deal, GuidedPass, Tail, forks_of
from ltxgen.parallel.shape import MeshShape, Shards

PARTIAL_BYTES = 4  # partial attention results travel in fp32


@dataclass(frozen=True)
class Traffic:
    """Bytes that one rank receives: the rank that receives the most, if passes are dealt unevenly."""

    ulysses: int = 0
    ring: int = 0
    gather: int = 0  # velocities, or hidden states to hand over, along both sequence axes
    guidance: int = 0

    @property
    def total(self) -> int:
        return self.ulysses + self.ring + self.gather + self.guidance

    @property
    def by_kind(self) -> dict[str, int]:
        """What moves at all."""
        return {kind: size for kind, size in vars(self).items() if size}

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(*(one + two for one, two in zip(vars(self).values(), vars(other).values(), strict=True)))


def step_traffic(
    shape: MeshShape,
    config: TransformerConfig,
    passes: Sequence[GuidedPass],
    tokens: Pair[int],
    bytes_per_value: int,
    dealt: Deal,
) -> Traffic:
    """A step of `passes` over one sample of `tokens`, both modalities enabled, before the tail if there is one.

    `tokens` is None for a modality that isn't there. Velocities have the dtype of the model, `bytes_per_value` wide.
    Passes that run as one batch, at small shapes, move a little more: what one of them leaves out.
    """
    tail, num_blocks = dealt.tail, config.num_layers
    streams = ((tokens.video or 0, config.video), (tokens.audio or 0, config.audio))
    velocity = bytes_per_value * sum(count * stream.out_channels for count, stream in streams)

    def of_rank(rank: int) -> Traffic:
        mine = [number for number, owner in enumerate(dealt.owners) if owner == rank]
        parting = forks_of([passes[number] for number in mine], num_blocks)
        moved = [
            pass_traffic(shape, config, passes[number].perturbation, tokens, bytes_per_value, blocks)
            for number, fork in zip(mine, parting, strict=True)
            for blocks in [dealt.blocks(number, num_blocks)[fork.block :]]
        ]
        elsewhere = velocity * (len(passes) - len(mine))
        if tail is not None and tail.number not in mine:
            hidden = bytes_per_value * sum(count * stream.width for count, stream in streams)
            elsewhere += hidden - velocity
        return sum(moved, start=Traffic(guidance=elsewhere))

    return max(map(of_rank, range(shape.guidance)), key=lambda traffic: traffic.total)


def tail_traffic(
    shape: MeshShape,
    config: TransformerConfig,
    passes: Sequence[GuidedPass],
    tokens: Pair[int],
    bytes_per_value: int,
    tail: Tail,
) -> Traffic:
    """The shared end of a step, whose ranks lie in `shape` there."""
    blocks = range(tail.block, config.num_layers)
    return pass_traffic(shape, config, passes[tail.number].perturbation, tokens, bytes_per_value, blocks)


def pass_traffic(
    shape: MeshShape,
    config: TransformerConfig,
    perturbation: Perturbation,
    tokens: Pair[int],
    bytes_per_value: int,
    blocks: range,
) -> Traffic:
    """`blocks` of one pass, and what comes out of them put together: velocities, or hidden states to hand over."""
    shards = tokens.map(lambda count: Shards(count, shape.ring, shape.ulysses))
    video, audio = shards.video, shards.audio
    exchange = _Exchange(shape, bytes_per_value)
    is_last = blocks.stop == config.num_layers
    moved: list[tuple[int, Traffic]] = []  # how often, and what
    gather = 0
    if video is not None:
        skipped = sum(block in blocks for block in perturbation.skip_video_self_attention)
        moved.append((len(blocks) - skipped, exchange.long(video, config.video.width)))
        gather += exchange.whole(video, config.video.out_channels if is_last else config.video.width)
    if audio is not None:
        skipped = sum(block in blocks for block in perturbation.skip_audio_self_attention)
        moved.append((len(blocks) - skipped, exchange.few_keys(audio, config.audio.width)))
        gather += exchange.whole(audio, config.audio.out_channels if is_last else config.audio.width)
    if video is not None and audio is not None and not perturbation.isolate_modalities:
        moved.append((len(blocks), exchange.few_keys(audio, config.audio.width)))
        moved.append((len(blocks), exchange.few_queries(audio, video, config.audio.width, config.audio.num_heads)))
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
