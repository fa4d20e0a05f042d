"""One run's parallelism: known when it is planned, put to work by its stages."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ltxgen.diffusion.pair import Pair
from ltxgen.models.transformer import AttentionByRole, PassesModel, Transformer, TransformerConfig, Velocities
from ltxgen.models.transformer.graphs import Record, Run
from ltxgen.models.video_vae import Tile
from ltxgen.parallel.axes import Axis, Layout
from ltxgen.parallel.cost import CostModel, Work, common_heads
from ltxgen.parallel.dealt import DealtTransformer, SharedTail
from ltxgen.parallel.sequence import SequenceParallel, Sharding, sequence_of_process
from ltxgen.parallel.shape import Choice, MeshShape
from ltxgen.parallel.tally import Communication
from ltxgen.parallel.tiles import TileDeal, TileParallel
from ltxgen.parallel.traffic import Traffic

if TYPE_CHECKING:
    from ltxgen.parallel.fsdp import ShardedWeights


class ParallelPlan:
    """The ranks as chosen; stages with fewer passes use them in another shape.

    With `vae_tiles` all ranks decode tiles of the video, without it the first one alone.

    `roles` go into the transformer when it is built, `stage` wraps it around its use. Process groups are made at the
    first use of a shape, which all ranks reach together. With `sharded_weights`, no rank has the whole of the large
    components.
    """

    def __init__(self, choice: Choice, cost: CostModel) -> None:
        self.choice = choice
        self.shape = choice.shape
        self.sharded_weights = choice.sharded
        self.vae_tiles = choice.vae_tiles
        self.cost = cost
        self.config: TransformerConfig = cost.config
        self.sequence = sequence_of_process()

    def roles(self, local: AttentionByRole) -> AttentionByRole:
        """The transformer's attention functions; `local` itself where a run has one rank."""
        return local if self.shape.num_ranks == 1 else self.sequence.roles(local)

    def roles_with_lse(self, num_passes: Iterable[int]) -> tuple[str, ...]:
        """The roles whose `local` function must have `with_lse`, for stages of so many passes a step."""
        return ("video_self",) if any(self.stage_shape(count).ring > 1 for count in num_passes) else ()

    def stage_shape(self, num_passes: int) -> MeshShape:
        """The ranks' shape in a stage of at most `num_passes` passes a step."""
        return self.shape.for_passes(num_passes, common_heads(self.config))

    def lines(self) -> list[str]:
        """Why these ranks were chosen, and what each stage should take on the GPUs that predictions are for."""
        return [*self.choice.why, *(self._predicted(name, work) for name, work in self.cost.stages.items())]

    def _predicted(self, name: str, work: Work) -> str:
        shape = self.cost.stage_shape(work, self.shape)
        step = self.cost.step(work, shape, self.sharded_weights)
        exchange = f" ({step.exchange:.3f} s of it waiting for exchanges)" if shape.num_ranks > 1 else ""
        whole = self.cost.stage_seconds(work, shape, self.sharded_weights)
        each = f"{step.seconds:.3f} s a step{exchange}, {whole:.1f} s for {len(work.steps)}"
        tail = self.cost.dealt(work, shape, self.sharded_weights).tail
        shared = "" if tail is None else f", pass {tail.number + 1} shared by all from block {tail.block} on"
        return f"{name} on {shape}{shared}: {each}, predicted for {self.cost.hardware.name}"

    def traffic(self, work: Work) -> Traffic:
        """What the dearest step of `work` moves between ranks."""
        shape = self.cost.stage_shape(work, self.shape)
        return self.cost.traffic(work.dearest, work.tokens, shape, self.cost.dealt(work, shape, self.sharded_weights))

    def stage(self, num_passes: int, device_type: str, all_predict: bool = False) -> StageParallel:
        """The parallelism of a running stage of at most `num_passes` passes a step, whose ranks `all_predict`."""
        shape = self.stage_shape(num_passes)
        layout = Layout.build(shape, device_type)
        # Where weights are sharded the ranks gather them from each other, also from those that have no pass.
        all_predict = all_predict or self.sharded_weights
        together = None if all_predict else self.cost.tail_shape(shape)
        in_tail = None if together is None else Layout.build(together, device_type).counted_with(layout)
        return StageParallel(layout, self.sequence, self.cost, shape, all_predict, in_tail)

    def placement(self, device_type: str) -> ShardedWeights | None:
        """How components are placed on the ranks; None: each is whole on every one."""
        if not self.sharded_weights:
            return None
        from ltxgen.parallel.fsdp import ShardedWeights  # takes half a second to import

        return ShardedWeights(self.shape.num_ranks, device_type)

    def deal_tiles(self, tiles: Sequence[Tile]) -> TileDeal:
        """Which rank decodes which of a video's tiles."""
        return TileDeal(tiles, self.shape.num_ranks, self.shape.num_ranks if self.vae_tiles else 1)

    def tiles(self, tiles: Sequence[Tile], device_type: str) -> TileParallel:
        """The parallelism of a running stage that decodes `tiles`."""
        return TileParallel(self.deal_tiles(tiles), self.all_ranks(device_type))

    def all_ranks(self, device_type: str) -> Axis:
        """Every rank of the run, in a running stage."""
        return Axis() if self.shape.num_ranks == 1 else Axis.of_all_ranks(device_type)


@dataclass(frozen=True, eq=False)
class StageParallel:
    """What a denoising stage sees of the ranks, which lie in `shape`, and `in_tail` where they share a pass's end. With
    `all_predict` each calls the transformer whenever another does, if need be for a pass that is not its own."""

    layout: Layout
    sequence: SequenceParallel
    cost: CostModel
    shape: MeshShape
    all_predict: bool = False
    in_tail: Layout | None = None

    def wrap(self, transformer: PassesModel, dtype: torch.dtype) -> PassesModel:
        """`transformer`, whose velocities have `dtype`, run by all ranks: whole steps in, all velocities out on each.

        All ranks call this together, and what it returns.
        """
        run = self.sequence.wrap(transformer, self.layout)
        if self.layout.guidance.size == 1:
            return run
        tail = self._tail(transformer)
        deal = functools.partial(self.cost.deal, shape=self.shape, share_tail=tail is not None)
        channels = Pair(self.cost.config.video.out_channels, self.cost.config.audio.out_channels)
        return DealtTransformer(
            run, self.layout.guidance, functools.cache(deal), channels, dtype, self.all_predict, tail
        )

    def _tail(self, transformer: PassesModel) -> SharedTail | None:
        """None unless all ranks can run part of a pass: of the transformer itself, whose blocks need not come again."""
        if self.in_tail is None:
            return None
        can = isinstance(transformer, Transformer) and not transformer.is_hooked
        device = self.layout.device_type
        if not Axis.of_all_ranks(device).all_gather(torch.full((1,), can, device=device)).all():
            return None
        assert isinstance(transformer, Transformer), "one that can"
        of_stage, of_all = (Sharding(self.sequence, layout) for layout in (self.layout, self.in_tail))
        return SharedTail(transformer, self.layout.guidance, of_stage, of_all)

    def counted(self, record: Record) -> Record:
        """`record` for steps in which ranks exchange: that is counted whenever it is done again."""
        tallies = self.layout.tallies.values()

        def record_counted(run: Run) -> Run:
            with ExitStack() as stack:
                exchanged = [(tally, stack.enter_context(tally.recording())) for tally in tallies]
                replay = record(run)

            def replay_counted() -> list[Velocities]:
                for tally, recorded in exchanged:
                    tally.repeat(recorded)
                return replay()

            return replay_counted

        return record_counted

    def own_tokens(self, hidden: Pair[Tensor]) -> Pair[Tensor]:
        """What the wrapped transformer holds (B, T, C), without the padding."""
        return self.sequence.without_padding(hidden)

    def summed(self, x: Tensor) -> Tensor:
        """Over the ranks of the sequence."""
        for axis in (self.layout.ulysses, self.layout.ring):
            x = axis.all_gather(x).sum(0) if axis.size > 1 else x
        return x

    def largest(self, x: Tensor) -> Tensor:
        """Of all ranks; bit for bit the same on each."""
        for axis in (self.layout.ulysses, self.layout.ring, self.layout.guidance):
            x = axis.all_gather(x).amax(0) if axis.size > 1 else x
        return x

    @property
    def communication(self) -> Communication:
        """What was counted on this rank since the stage began."""
        return self.layout.communication
