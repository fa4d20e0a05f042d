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
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch.nn.functional as F
from torch import Tensor

from ltxgen.diffusion.pair import Pair
from ltxgen.models.transformer import AttentionByRole, AttentionFunction, ModalityInput, Perturbation
from ltxgen.parallel.axes import Layout
from ltxgen.parallel.ring import gathered_query_attention, ring_attention
from ltxgen.parallel.shape import Shards
from ltxgen.parallel.ulysses import ulysses_attention

ROLES = ("video_self", "audio_self", "video_from_audio", "audio_from_video")
"""The roles whose keys are spread over the ranks; text is not."""


class VelocityModel(Protocol):
    """The transformer's own signature."""

    def __call__(
        self,
        video: ModalityInput | None,
        audio: ModalityInput | None,
        perturbation: Perturbation | Sequence[Perturbation] = ...,
    ) -> tuple[Tensor | None, Tensor | None]: ...


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
        """`local`'s functions, made to work between the ranks. The ring asks for their `with_lse` (`LseAttention`)."""

        def between_ranks(attend: AttentionFunction, keys: Modality, few_queries: bool = False) -> AttentionFunction:
            return ParallelAttention(self, attend, keys, few_queries)

        return dataclasses.replace(
            local,
            video_self=between_ranks(local.video_self, keys="video"),
            audio_self=between_ranks(local.audio_self, keys="audio"),
            video_from_audio=between_ranks(local.video_from_audio, keys="audio"),
            audio_from_video=between_ranks(local.audio_from_video, keys="video", few_queries=True),
        )

    def wrap(self, transformer: VelocityModel, layout: Layout) -> VelocityModel:
        """`transformer`, called with whole inputs and returning whole velocities, run on this rank's shard of them.

        All ranks of the sequence must call it with the same inputs. With one rank it is the transformer itself.
        """
        return transformer if layout.num_shards == 1 else ShardedTransformer(transformer, self, layout)


@dataclass(frozen=True, eq=False)
class ShardedTransformer:
    transformer: VelocityModel
    parallel: SequenceParallel
    layout: Layout

    def __call__(
        self,
        video: ModalityInput | None,
        audio: ModalityInput | None,
        perturbation: Perturbation | Sequence[Perturbation] = Perturbation(),  # noqa: B008 - frozen
    ) -> tuple[Tensor | None, Tensor | None]:
        with self.sharded(video, audio) as local:
            velocities = Pair(*self.transformer(local.video, local.audio, perturbation))
        whole = velocities.map(functools.partial(gather_tokens, layout=self.layout), Pair(video, audio))
        return whole.video, whole.audio

    @contextmanager
    def sharded(self, video: ModalityInput | None, audio: ModalityInput | None) -> Iterator[Pair[ModalityInput]]:
        """This rank's inputs; inside the block, attention works between the ranks."""
        assert self.parallel.running is None, "one transformer at a time"
        inputs = Pair(video, audio)
        ring, ulysses = self.layout.ring.size, self.layout.ulysses.size
        shards = inputs.map(lambda whole: Shards(whole.latents.shape[1], ring, ulysses))
        self.parallel.running = Running(self.layout, shards)
        try:
            yield inputs.map(functools.partial(shard_tokens, layout=self.layout), shards)
        finally:
            self.parallel.running = None


Modality = Literal["video", "audio"]


@dataclass(frozen=True, eq=False)
class ParallelAttention:
    """One role's attention function: between ranks while a sharded transformer runs, otherwise `local`.

    `keys` is the modality attended to. `few_queries`: the queries' sequence is much the shorter one.
    """

    parallel: SequenceParallel
    local: AttentionFunction
    keys: Modality
    few_queries: bool

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """q, k, v of this rank's tokens; `mask` has the rows of its ring block and the columns of all tokens."""
        running = self.parallel.running
        if running is None:
            return self.local(q, k, v, mask)
        shards: Shards = getattr(running.shards, self.keys)
        num_keys, ring = shards.tokens_in_block, running.layout.ring

        def over_blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            # Padding stands behind a block's tokens and is cut off, which needs no mask: the fast kernels have none.
            if ring.size == 1:
                return self.local(q, k[:, :, : num_keys[0]], v[:, :, : num_keys[0]], mask)
            assert isinstance(self.local, LseAttention), f"{self.local} gives no log-sum-exp for the ring to merge by"
            if self.few_queries and mask is None:
                return gathered_query_attention(q, k, v, ring, num_keys, self.local.with_lse)
            return ring_attention(q, k, v, mask, ring, num_keys, self.local.with_lse)

        return ulysses_attention(q, k, v, running.layout.ulysses, over_blocks)


def shard_tokens(whole: ModalityInput, shards: Shards, *, layout: Layout) -> ModalityInput:
    """This rank's piece of every per-token input, padded with zeros at the end of the sequence.

    The rows of an attention mask are those of the whole ring block, since there Ulysses attends with all its queries.
    """
    length, shared = shards.piece_length, whole.timesteps.shape[1] == 1
    start = layout.shard * length
    mask = whole.attention_mask
    if mask is not None:
        # Padding sees everything: a query without keys would have no result to compute.
        mask = _piece(mask, 1, layout.ring.rank * shards.block_length, shards.block_length, fill=1.0)
    return dataclasses.replace(
        whole,
        latents=_piece(whole.latents, 1, start, length),
        timesteps=whole.timesteps if shared else _piece(whole.timesteps, 1, start, length),
        positions=_piece(whole.positions, 2, start, length),
        attention_mask=mask,
    )


def gather_tokens(piece: Tensor, whole: ModalityInput, *, layout: Layout) -> Tensor:
    """Everyone's (B, T/ranks, C) to (B, T, C) without the padding, bit for bit the same on all ranks."""
    for axis in layout.gather:
        if axis.size > 1:
            piece = axis.all_gather(piece).movedim(0, 1).flatten(1, 2)
    return piece[:, : whole.latents.shape[1]]


def _piece(x: Tensor, dim: int, start: int, length: int, fill: float = 0.0) -> Tensor:
    """`length` entries of `x` along `dim` from `start` on; `fill` where it has no more."""
    total = x.shape[dim]
    piece = x.narrow(dim, min(start, total), max(min(length, total - start), 0))
    missing = length - piece.shape[dim]
    return F.pad(piece, (0, 0) * (x.dim() - 1 - dim) + (0, missing), value=fill) if missing else piece
