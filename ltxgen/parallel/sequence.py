"""Sequence parallelism around a transformer that knows nothing of it.

Its tokens are cut into equal pieces, video and audio alike, one a rank; its attention functions exchange what they need
with the other ranks; its velocities are put together again. Text is the same on all ranks.

B batch, T tokens, N axes of a position
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from ltxgen.diffusion.pair import Pair
from ltxgen.models.transformer import (
    AttentionByRole,
    AttentionFunction,
    Hidden,
    ModalityInput,
    PassesModel,
    TransformerPass,
    Velocities,
)
from ltxgen.models.transformer.memo import TensorMemo
from ltxgen.parallel.axes import Layout
from ltxgen.parallel.gathered import gathered_keys, gathered_query_attention
from ltxgen.parallel.ring import AttentionWithLse, ring_attention
from ltxgen.parallel.shape import Shards
from ltxgen.parallel.ulysses import ulysses_attention


@runtime_checkable
class LseAttention(Protocol):
    """An attention function that can also say how much weight its keys had: see `ring.AttentionWithLse`."""

    def with_lse(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True, eq=False)
class Running:
    """The sharding in force while a transformer runs."""

    layout: Layout
    shards: Pair[Shards]


class SequenceParallel:
    """Attention functions for a transformer's roles, and the wrapper that makes them work together.

    A transformer is built once with `roles` and serves stages of different layouts, each with its own `wrap`. Called
    without a wrapper it runs on this rank alone.
    """

    def __init__(self) -> None:
        self.running: Running | None = None

    def roles(self, local: AttentionByRole) -> AttentionByRole:
        """`local`'s functions, made to work between the ranks. Merging asks for their `with_lse` (`LseAttention`)."""

        def between_ranks(attend: AttentionFunction, keys: Modality, few: Few = None) -> AttentionFunction:
            return ParallelAttention(self, attend, keys, few)

        return dataclasses.replace(
            local,
            video_self=between_ranks(local.video_self, keys="video"),
            audio_self=between_ranks(local.audio_self, keys="audio", few="keys"),
            video_from_audio=between_ranks(local.video_from_audio, keys="audio", few="keys"),
            audio_from_video=between_ranks(local.audio_from_video, keys="video", few="queries"),
        )

    def wrap(self, transformer: PassesModel, layout: Layout) -> PassesModel:
        """`transformer`, given whole inputs and returning whole velocities, run on this rank's shard of them.

        All ranks of the sequence must call it with the same inputs. With one rank it is the transformer itself.
        """
        return transformer if layout.num_shards == 1 else ShardedTransformer(transformer, Sharding(self, layout))

    def without_padding(self, pieces: Pair[Tensor]) -> Pair[Tensor]:
        """Of this rank's pieces (B, T, C), the tokens; all of them outside of a sharded transformer."""
        running = self.running
        if running is None:
            return pieces
        shard = running.layout.shard
        return pieces.map(lambda piece, shards: piece[:, : shards.tokens_in_piece(shard)], running.shards)


@functools.cache
def sequence_of_process() -> SequenceParallel:
    """One for all runs of this process: a transformer that stays loaded works with the next run's wrappers."""
    return SequenceParallel()


@dataclass(frozen=True, eq=False)
class ShardedTransformer:
    transformer: PassesModel
    sharding: Sharding

    def forward_passes(self, passes: Sequence[TransformerPass]) -> list[Velocities]:
        whole = Pair(passes[0].video, passes[0].audio)
        with self.sharding.of(whole) as local:
            results = self.transformer.forward_passes([with_tokens(local, each) for each in passes])
        return [self.sharding.gathered(velocities, whole) for velocities in results]


@dataclass(frozen=True, eq=False)
class Sharding:
    """How a transformer's tokens are cut for the ranks of a layout, and put together again."""

    parallel: SequenceParallel
    layout: Layout
    remembered: TensorMemo = field(default_factory=TensorMemo)

    @contextmanager
    def of(self, whole: Pair[ModalityInput]) -> Iterator[Pair[ModalityInput]]:
        """This rank's inputs; inside the block, attention works between the ranks. One rank alone has them whole."""
        if self.layout.num_shards == 1:
            yield whole
            return
        assert self.parallel.running is None, "one transformer at a time"
        shards = whole.map(self._shards)
        self.parallel.running = Running(self.layout, shards)
        try:
            yield whole.map(self.shard_tokens, shards)
        finally:
            self.parallel.running = None

    def hidden(self, whole: Hidden) -> Hidden:
        """This rank's piece of hidden states (B, T, C), cut as `of` cuts inputs."""

        def piece(x: Tensor) -> Tensor:
            length = self._shards(x).piece_length
            return _piece(x, 1, self.layout.shard * length, length).contiguous()

        return Hidden(*(None if x is None else piece(x) for x in whole))

    def gathered(self, pieces: tuple[Tensor | None, Tensor | None], whole: Pair[ModalityInput]) -> Velocities:
        """Every rank's pieces of both modalities (B, T/ranks, C) put together, bit for bit the same on all of them."""
        both = Pair(*pieces).map(functools.partial(gather_tokens, layout=self.layout), whole)
        return both.video, both.audio

    def _shards(self, whole: ModalityInput | Tensor) -> Shards:
        tokens = whole if isinstance(whole, Tensor) else whole.latents
        return Shards(tokens.shape[1], self.layout.ring.size, self.layout.ulysses.size)

    def shard_tokens(self, whole: ModalityInput, shards: Shards) -> ModalityInput:
        """This rank's piece of every per-token input, padded with zeros at the end of the sequence.

        The rows of an attention mask are those of the whole ring block, since there Ulysses attends with all its
        queries. What stays the same from step to step is cut once, so that whoever remembers it finds it again.
        """
        length = shards.piece_length
        start = self.layout.shard * length

        def cut(x: Tensor, dim: int, start: int = start, length: int = length, fill: float = 0.0) -> Tensor:
            def piece() -> Tensor:
                # With strides of its own, which compiled code is specific to.
                return _piece(x, dim, start, length, fill).clone(memory_format=torch.contiguous_format)

            return self.remembered(x, (start, length), piece)

        index, mask = whole.timestep_index, whole.attention_mask
        per_token = index is None and whole.timesteps.shape[1] > 1
        if mask is not None:
            # Padding sees everything: a query without keys would have no result to compute.
            mask = cut(mask, 1, self.layout.ring.rank * shards.block_length, shards.block_length, fill=1.0)
        return dataclasses.replace(
            whole,
            latents=_piece(whole.latents, 1, start, length),
            timesteps=_piece(whole.timesteps, 1, start, length) if per_token else whole.timesteps,
            timestep_index=None if index is None else cut(index, 1),
            positions=cut(whole.positions, 2),
            attention_mask=mask,
        )


def with_tokens(tokens: Pair[ModalityInput], each: TransformerPass) -> TransformerPass:
    """The pass `each` over other `tokens`."""

    def with_text(own: ModalityInput, text: ModalityInput) -> ModalityInput:
        return dataclasses.replace(own, context=text.context, context_mask=text.context_mask)

    both = tokens.map(with_text, Pair(each.video, each.audio))
    return TransformerPass(both.video, both.audio, each.perturbation)


Modality = Literal["video", "audio"]
Few = Literal["keys", "queries"] | None


@dataclass(frozen=True)
class ParallelAttention:
    """One role's attention function: between ranks while a sharded transformer runs, otherwise `local`.

    `keys` is the modality attended to. `few`: which of both sequences, if any, is much the shorter one.
    """

    parallel: SequenceParallel
    local: AttentionFunction
    keys: Modality
    few: Few

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """q, k, v of this rank's tokens; `mask` has the rows of its ring block and the columns of all tokens."""
        running = self.parallel.running
        if running is None:
            return self.local(q, k, v, mask)
        layout, shards = running.layout, getattr(running.shards, self.keys)
        if self.few == "keys":
            keys, values = gathered_keys(k, v, (layout.ulysses, layout.ring), shards.num_tokens)
            return self.local(q, keys, values, own_rows(mask, q.shape[2], layout))
        if self.few == "queries" and mask is None and (axis := layout.only_axis) is not None:
            counts = [shards.tokens_in_piece(number) for number in range(axis.size)]
            return gathered_query_attention(q, k, v, axis, counts, self._with_lse)

        def over_blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            # Padding stands behind a block's tokens and is cut off, which needs no mask: the fast kernels have none.
            counts = shards.tokens_in_block
            if layout.ring.size == 1:
                return self.local(q, k[:, :, : counts[0]], v[:, :, : counts[0]], mask)
            if self.few == "queries" and mask is None:
                return gathered_query_attention(q, k, v, layout.ring, counts, self._with_lse)
            return ring_attention(q, k, v, mask, layout.ring, counts, self._with_lse)

        return ulysses_attention(q, k, v, layout.ulysses, over_blocks)

    @property
    def _with_lse(self) -> AttentionWithLse:
        assert isinstance(self.local, LseAttention), f"{self.local} gives no log-sum-exp to merge by"
        return self.local.with_lse


def own_rows(mask: Tensor | None, num_rows: int, layout: Layout) -> Tensor | None:
    """Of the rows of a ring block those of this rank's `num_rows` queries; a single row is everyone's."""
    if mask is None or mask.shape[-2] == 1:
        return mask
    return mask.narrow(-2, layout.ulysses.rank * num_rows, num_rows)


def gather_tokens(piece: Tensor, whole: ModalityInput, *, layout: Layout) -> Tensor:
    """Everyone's (B, T/ranks, C) to (B, T, C) without the padding, bit for bit the same on all ranks."""
    for axis in layout.gather:
        if axis.size > 1:
            piece = axis.all_gather(piece).movedim(0, 1).flatten(1, 2)
    return piece[:, : whole.latents.shape[1]].contiguous()


def _piece(x: Tensor, dim: int, start: int, length: int, fill: float = 0.0) -> Tensor:
    """`length` entries of `x` along `dim` from `start` on; `fill` where it has no more."""
    total = x.shape[dim]
    piece = x.narrow(dim, min(start, total), max(min(length, total - start), 0))
    missing = length - piece.shape[dim]
    return F.pad(piece, (0, 0) * (x.dim() - 1 - dim) + (0, missing), value=fill) if missing else piece
