"""One run's parallelism: known when it is planned, put to work by its stages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ltxgen.diffusion.pair import Pair
from ltxgen.models.transformer import AttentionByRole, PassesModel, TransformerConfig, Velocities
from ltxgen.models.transformer.graphs import Record, Run
from ltxgen.models.video_vae import Tile
from ltxgen.parallel.axes import Axis, Layout
from ltxgen.parallel.cost import CostModel, Work, common_heads
from ltxgen.parallel.guidance import Pass, predict_passes
from ltxgen.parallel.sequence import SequenceParallel, sequence_of_process
from ltxgen.parallel.shape import Choice, MeshShape
from ltxgen.parallel.tally import Communication
from ltxgen.parallel.tiles import TileDeal, TileParallel
from ltxgen.parallel.traffic import Traffic, step_traffic

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
        step = self.cost.step(work, shape, self.choice.sharded)
        exchange = f" ({step.exchange:.3f} s of it waiting for exchanges)" if shape.num_ranks > 1 else ""
        whole = self.cost.stage_seconds(work, shape, self.choice.sharded)
        each = f"{step.seconds:.3f} s a step{exchange}, {whole:.1f} s for {len(work.steps)}"
        return f"{name} on {shape}: {each}, predicted for {self.cost.hardware.name}"

    def traffic(self, passes: Sequence[Pass], tokens: Pair[int], bytes_per_value: int) -> Traffic:
        """What a step of `passes` over one sample of `tokens` moves between ranks."""
        return step_traffic(self.stage_shape(len(passes)), self.config, passes, tokens, bytes_per_value)

    def stage(self, num_passes: int, device_type: str, all_predict: bool = False) -> StageParallel:
        """The parallelism of a running stage of at most `num_passes` passes a step, whose ranks `all_predict`."""
        layout = Layout.build(self.stage_shape(num_passes), device_type)
        # Where weights are sharded the ranks gather them from each other, also from those that have no pass.
        return StageParallel(layout, self.sequence, self.config.num_layers, self.sharded_weights or all_predict)

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
    """What a denoising stage sees of the ranks. With `all_predict` each calls the transformer whenever another does,
    if need be for a pass that is not its own."""

    layout: Layout
    sequence: SequenceParallel
    num_blocks: int
    all_predict: bool = False

    def wrap(self, transformer: PassesModel) -> PassesModel:
        """`transformer` run by all ranks of the sequence, whole in and whole out."""
        return self.sequence.wrap(transformer, self.layout)

    def counted(self, record: Record) -> Record:
        """`record` for steps whose attention exchanges with other ranks: that is counted whenever it is done again."""
        tallies = self.layout.of_attention.values()

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

    def predict_passes(
        self,
        passes: Sequence[Pass],
        predict: Callable[[Sequence[Pass]], Sequence[Pair[Tensor]]],
        like: Pair[Tensor],
    ) -> list[Pair[Tensor]]:
        """The result of every pass, in order; `predict` is given those of this rank. `like` has a result's shapes and
        dtypes."""
        return predict_passes(passes, predict, like, self.layout.guidance, self.num_blocks, self.all_predict)

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
