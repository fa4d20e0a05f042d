"""What denoising takes on given GPUs and links, predicted from shapes: for `ltxgen plan`, and for `parallel=auto`.

A step is arithmetic at the GPU's measured rates, memory-bound kernels at its memory bandwidth, and exchanges at the
bandwidth of the slowest link that an axis crosses. The ring and the gathering of weights run beside arithmetic and
count for what they take beyond it; the rest of the exchanges is waited for. A step that is not recorded as a CUDA graph
takes at least what the host needs to launch it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ltxgen.config.hardware import Hardware
from ltxgen.diffusion.pair import Pair
from ltxgen.models.transformer import TransformerConfig, batch_limit
from ltxgen.models.transformer.activations import activation_bytes, hidden_bytes
from ltxgen.models.transformer.flops import LinearWork, block_parameters, linear_work, pass_flops
from ltxgen.models.transformer.graphs import SHARED_GRAPHED_TOKENS
from ltxgen.parallel.guidance import Deal, GuidedPass, deal
from ltxgen.parallel.shape import MeshShape
from ltxgen.parallel.traffic import Traffic, step_traffic, tail_traffic

TEXT_TOKENS = 1024  # what the text encoder is padded to
# Bytes that the memory-bound kernels of a block move for a token, in parts of the token's own bytes: of compiled
# forwards profiled on one H200, 67 at 6144 tokens and 62 at 24576 (docs/parallel.md).
BLOCK_PASSES = 64
BLOCK_LAUNCH_SECONDS = 4e-3  # of the host, to launch a block: 190 ms a forward beside an H100, 105 to 220 an H200
EXCHANGE_LAUNCH_SECONDS = 0.7e-3  # and an exchange, of each of two ranks there (docs/parallel.md)
MERGE_PASSES = 60  # of a token's bytes, to merge a partial result of the ring in fp32, kernel by kernel
PACKING_PASSES = 20  # of what moves along Ulysses, to pack and unpack it: copies that jump from head to head
COLLECTIVE_SECONDS = 0.1e-3  # start-up of one exchange, on two H100s; a block has six with Ulysses
RECORDED_COLLECTIVE_SECONDS = 0.025e-3  # in a CUDA graph
COLLECTIVES_PER_BLOCK = 6
NO_LAYERS = linear_work({})
USABLE = 0.92  # of a GPU's memory: the rest is the CUDA context, the allocator's gaps and the kernels' workspaces


@dataclass(frozen=True)
class Work:
    """What a stage asks of the transformer: the passes of each evaluation, tokens of one sample, the attention roles
    that get a mask, and how many hidden states of each pass are kept from step to step.

    Most samplers evaluate once a step. Where guidance or reuse skips, an evaluation has no pass.
    """

    steps: Sequence[Sequence[GuidedPass]]
    tokens: Pair[int]
    masked: tuple[str, ...] = ()
    kept_hidden: int = 0

    @property
    def dearest(self) -> Sequence[GuidedPass]:
        """The passes of the step that has the most."""
        return max(self.steps, key=len)

    @property
    def distinct_passes(self) -> int:
        return len({each for passes in self.steps for each in passes})


@dataclass(frozen=True)
class StepCost:
    """Predicted seconds of a step, of the rank that takes longest."""

    arithmetic: float
    exchange: float
    launching: float = 0.0

    @property
    def seconds(self) -> float:
        return max(self.arithmetic + self.exchange, self.launching)


@dataclass(frozen=True)
class CostModel:
    """Predictions for a transformer whose values take `bytes_per_value`, on machines with `ranks_per_machine` each.

    `batched_tokens`: up to so many video tokens the passes of a step run as one batch (None: as was measured).
    `graphed_tokens`: passes of up to so many of a rank's own are recorded as CUDA graphs where several ranks share a
    step. `float8`: of the layers that run in fp8, whose weights take a byte. `launched`: whether what the host takes to
    launch counts.
    """

    config: TransformerConfig
    stages: Mapping[str, Work]
    hardware: Hardware
    ranks_per_machine: int = 1
    bytes_per_value: int = 2
    batched_tokens: int | None = None
    float8: LinearWork = NO_LAYERS
    graphed_tokens: int = SHARED_GRAPHED_TOKENS
    launched: bool = True

    def run_seconds(self, shape: MeshShape, sharded: bool = False) -> float:
        """All steps of all stages, each with the same ranks in the shape that suits it."""
        return sum(self.stage_seconds(work, self.stage_shape(work, shape), sharded) for work in self.stages.values())

    def stage_seconds(self, work: Work, shape: MeshShape, sharded: bool = False) -> float:
        """All steps of a stage whose ranks lie in `shape`."""
        alike = Counter(tuple(passes) for passes in work.steps if passes)
        return sum(
            count * self.step(Work([passes], work.tokens), shape, sharded).seconds for passes, count in alike.items()
        )

    def stage_shape(self, work: Work, shape: MeshShape) -> MeshShape:
        """The ranks of `shape` as they serve one stage."""
        return shape.for_passes(max(map(len, work.steps), default=0), common_heads(self.config))

    def step(self, work: Work, shape: MeshShape, sharded: bool = False) -> StepCost:
        """The dearest step of a stage whose ranks lie in `shape`."""
        return self._step(work.dearest, self.dealt(work, shape, sharded), work.tokens, shape, sharded)

    def dealt(self, work: Work, shape: MeshShape, sharded: bool = False) -> Deal:
        """Who runs which pass of that step."""
        return self.deal(work.dearest, work.tokens, shape, share_tail=not sharded and not work.kept_hidden)

    def deal(
        self, passes: Sequence[GuidedPass], tokens: Pair[int], shape: MeshShape, *, share_tail: bool = True
    ) -> Deal:
        """Who runs which pass; with a tail where that should be faster and the ranks can `share_tail`."""
        whole = deal(passes, shape.guidance, self.config.num_layers)
        if not share_tail or self.tail_shape(shape) is None or self._as_batch(len(passes), tokens, shape):
            return whole
        shared = deal(passes, shape.guidance, self.config.num_layers, share_tail=True)
        return min(whole, shared, key=lambda each: self._step(passes, each, tokens, shape).seconds)

    def tail_shape(self, shape: MeshShape) -> MeshShape | None:
        """How all ranks lie in a shared tail: over heads. None where they can't, or have no passes to deal."""
        together = shape.for_passes(1, common_heads(self.config))
        return together if shape.guidance > 1 and together.ring == shape.ring else None

    def traffic(self, passes: Sequence[GuidedPass], tokens: Pair[int], shape: MeshShape, dealt: Deal) -> Traffic:
        """What a step moves to the rank that receives the most."""
        moved, tail = self._moved(passes, tokens, shape, dealt)
        return moved + tail

    def _step(
        self, passes: Sequence[GuidedPass], dealt: Deal, tokens: Pair[int], shape: MeshShape, sharded: bool = False
    ) -> StepCost:
        of_stage, of_tail = dealt.load
        together = self.tail_shape(shape) or shape
        arithmetic = of_stage * self.forward_seconds(tokens, shape.num_shards)
        arithmetic += of_tail * self.forward_seconds(tokens, together.num_shards)
        moved, moved_in_tail = self._moved(passes, tokens, shape, dealt)
        num_own = math.ceil(len(passes) / shape.guidance)
        exchange = self._exchange(moved, tokens, shape, num_own) + self._exchange(
            moved_in_tail, tokens, together, of_tail
        )
        if sharded and shape.num_ranks > 1:  # once a step, for all passes
            received = self._weight_bytes * (shape.num_ranks - 1) / shape.num_ranks
            exchange += max(0.0, received / self._link(shape.num_ranks) - arithmetic)
        recorded = not sharded and shape.own_tokens(tokens.video or 0) <= self.graphed_tokens
        own_launches = 1 if self._as_batch(len(passes), tokens, shape, sharded) else of_stage
        launches = ((shape, own_launches), (together, of_tail))
        start = RECORDED_COLLECTIVE_SECONDS if recorded else COLLECTIVE_SECONDS
        exchange += sum(
            count * self.config.num_layers * COLLECTIVES_PER_BLOCK * start
            for used, count in launches
            if used.num_shards > 1
        )
        launching = 0.0 if recorded else sum(count * self._launch_seconds(used) for used, count in launches)
        return StepCost(arithmetic, exchange, launching)

    def _moved(
        self, passes: Sequence[GuidedPass], tokens: Pair[int], shape: MeshShape, dealt: Deal
    ) -> tuple[Traffic, Traffic]:
        """Before the tail, on the rank that receives the most, and in it."""
        moved = step_traffic(shape, self.config, passes, tokens, self.bytes_per_value, dealt)
        together = self.tail_shape(shape)
        if dealt.tail is None or together is None:
            return moved, Traffic()
        return moved, tail_traffic(together, self.config, passes, tokens, self.bytes_per_value, dealt.tail)

    def forward_seconds(self, tokens: Pair[int], num_shards: int = 1) -> float:
        """One pass on one rank that has its part of the tokens, exchanges left out."""
        flops = pass_flops(self.config, tokens.video, tokens.audio, TEXT_TOKENS, num_shards=num_shards)
        moved = self.config.num_layers * BLOCK_PASSES * self._token_bytes(tokens) / num_shards
        own = ((tokens.video or 0) / num_shards, (tokens.audio or 0) / num_shards, TEXT_TOKENS)
        in_float8 = 2 * self.float8.weights.of(*own)
        # Activations are read, and written in fp8, for each layer.
        moved += self.float8.inputs.of(*own) * (self.bytes_per_value + 1)
        return (
            (flops.linear - in_float8) / (self.hardware.gemm_tflops * 1e12)
            + in_float8 / ((self.hardware.fp8_tflops or self.hardware.gemm_tflops) * 1e12)
            + flops.attention / (self.hardware.attention_tflops * 1e12)
            + moved / (self.hardware.memory_gbps * 1e9)
        )

    def memory_bytes(self, shape: MeshShape, sharded: bool = False) -> int:
        """What the transformer takes on each rank at its largest stage: weights and activations."""
        weights = self._weight_bytes
        if sharded:  # beside its part, a rank holds the block it computes with and the next one
            weights = weights // shape.num_ranks + 2 * weights // self.config.num_layers
        return weights + max((self.activation_bytes(work, shape) for work in self.stages.values()), default=0)

    def activation_bytes(self, work: Work, shape: MeshShape) -> int:
        """What a stage's steps take on each rank beside the weights."""
        used = self.stage_shape(work, shape)
        in_step = max(map(len, work.steps), default=0)
        num_passes, as_batch = math.ceil(in_step / used.guidance), self._as_batch(in_step, work.tokens, used)
        hidden = self._token_bytes(work.tokens) // used.num_shards
        kept = work.kept_hidden * math.ceil(work.distinct_passes / used.guidance) * hidden if work.kept_hidden else 0
        return activation_bytes(hidden, num_passes, as_batch=as_batch) + kept

    def fits(self, shape: MeshShape, sharded: bool = False) -> bool:
        return self.memory_bytes(shape, sharded) <= USABLE * self.hardware.memory_gib * 2**30

    def _as_batch(self, num_passes: int, tokens: Pair[int], shape: MeshShape, sharded: bool = False) -> bool:
        """Whether a rank runs its part of so many passes as one batch."""
        own = math.ceil(num_passes / shape.guidance)
        return shape.own_tokens(tokens.video or 0) <= batch_limit(own, self.batched_tokens, recorded=not sharded)

    def _launch_seconds(self, shape: MeshShape) -> float:
        """Of one pass or one batch. One GPU alone works longer than its host at what it doesn't record."""
        if shape.num_ranks == 1 or not self.launched:
            return 0.0
        exchanges = COLLECTIVES_PER_BLOCK if shape.num_shards > 1 else 0
        return self.config.num_layers * (BLOCK_LAUNCH_SECONDS + exchanges * EXCHANGE_LAUNCH_SECONDS)

    @property
    def _weight_bytes(self) -> int:
        """Of the blocks; without their video half if no stage has video."""
        has_video = not self.stages or any(work.tokens.video for work in self.stages.values())
        weights = self.config.num_layers * block_parameters(self.config, has_video=has_video)
        return weights * self.bytes_per_value - sum(self.float8.weights) * (self.bytes_per_value - 1)

    def _token_bytes(self, tokens: Pair[int]) -> int:
        return hidden_bytes(self.config, tokens.video or 0, tokens.audio or 0, self.bytes_per_value)

    def _exchange(self, moved: Traffic, tokens: Pair[int], shape: MeshShape, num_passes: float) -> float:
        """Seconds waited for what moves in so many passes of a rank."""
        attention = pass_flops(self.config, tokens.video, tokens.audio, TEXT_TOKENS, num_shards=shape.num_shards)
        beside_ring = num_passes * attention.attention / (self.hardware.attention_tflops * 1e12)
        waited = (
            moved.ulysses / self._link(shape.ulysses)
            + max(0.0, moved.ring / self._link(shape.num_shards) - beside_ring)
            + moved.gather / self._link(shape.num_shards)
            + moved.guidance / self._link(shape.num_ranks)
        )
        merged = MERGE_PASSES * (shape.ring - 1) * self._token_bytes(tokens) / shape.num_shards
        copied = num_passes * self.config.num_layers * merged + PACKING_PASSES * moved.ulysses
        return waited + copied / (self.hardware.memory_gbps * 1e9)

    def _link(self, reach: int) -> float:
        """Bytes a second into a rank from `reach` neighbouring ranks; axes lie inside a machine as far as they fit."""
        within = reach <= self.ranks_per_machine
        return (self.hardware.link_gbps if within else self.hardware.network_gbps) * 1e9


def common_heads(config: TransformerConfig) -> int:
    """What a Ulysses degree must divide."""
    return math.gcd(config.video.num_heads, config.audio.num_heads)
