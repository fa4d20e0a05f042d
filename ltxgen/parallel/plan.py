"""One run's parallelism: known when it is planned, put to work by its denoising stages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ltxgen.diffusion.pair import Pair
from ltxgen.models.transformer import AttentionByRole, Transformer, TransformerConfig
from ltxgen.parallel.axes import Layout
from ltxgen.parallel.guidance import Pass, predict_passes
from ltxgen.parallel.sequence import ROLES, PassesModel, SequenceParallel
from ltxgen.parallel.shape import MeshShape
from ltxgen.parallel.traffic import Traffic, step_traffic


class ParallelPlan:
    """`shape` as configured; stages with fewer passes use the same ranks in another shape.

    `roles` go into the transformer when it is built, `stage` wraps it around its use. Process groups are made at the
    first use of a shape, which all ranks reach together.
    """

    def __init__(self, shape: MeshShape, config: TransformerConfig) -> None:
        self.shape = shape
        self.config = config
        self.sequence = SequenceParallel()
        self._layouts: dict[MeshShape, Layout] = {}

    def roles(self, local: AttentionByRole) -> AttentionByRole:
        """The transformer's attention functions; `local` itself where a run has one rank."""
        return local if self.shape.num_ranks == 1 else self.sequence.roles(local)

    def roles_with_lse(self, num_passes: Iterable[int]) -> tuple[str, ...]:
        """The roles whose `local` function must have `with_lse`, for stages of so many passes a step."""
        return ROLES if any(self.stage_shape(count).ring > 1 for count in num_passes) else ()

    def stage_shape(self, num_passes: int) -> MeshShape:
        """The ranks' shape in a stage of at most `num_passes` passes a step."""
        return self.shape.for_passes(num_passes, math.gcd(self.config.video.num_heads, self.config.audio.num_heads))

    def traffic(self, passes: Sequence[Pass], tokens: Pair[int], bytes_per_value: int) -> Traffic:
        """What a step of `passes` over one sample of `tokens` moves between ranks."""
        return step_traffic(self.stage_shape(len(passes)), self.config, passes, tokens, bytes_per_value)

    def stage(self, num_passes: int, device_type: str) -> StageParallel:
        """The parallelism of a running stage of at most `num_passes` passes a step."""
        shape = self.stage_shape(num_passes)
        if shape not in self._layouts:
            self._layouts[shape] = Layout.build(shape, device_type)
        return StageParallel(self._layouts[shape], self.sequence, self.config.num_layers)


@dataclass(frozen=True, eq=False)
class StageParallel:
    """What a denoising stage sees of the ranks."""

    layout: Layout
    sequence: SequenceParallel
    num_blocks: int

    def wrap(self, transformer: Transformer) -> PassesModel:
        """`transformer` run by all ranks of the sequence, whole in and whole out."""
        return self.sequence.wrap(transformer, self.layout)

    def predict_passes(
        self,
        passes: Sequence[Pass],
        predict: Callable[[Sequence[Pass]], Sequence[Pair[Tensor]]],
        like: Pair[Tensor],
    ) -> list[Pair[Tensor]]:
        """The result of every pass, in order; `predict` is given those of this rank. `like` has a result's shapes and
        dtypes."""
        return predict_passes(passes, predict, like, self.layout.guidance, self.num_blocks)
