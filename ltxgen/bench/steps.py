"""The transformer's cases: a plain forward, and the step of each denoising stage, at one shape.

A stage runs as it does in a recipe, on random latents and contexts; a sampler that takes no step hands out the denoiser
while it does.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ltxgen.bench.ceilings import FP8, Ceilings
from ltxgen.bench.conditions import Conditions
from ltxgen.bench.options import FORWARD, GUIDED, REFINE
from ltxgen.bench.peers import Forward, relative_l2
from ltxgen.bench.results import Entry, PeerFigure
from ltxgen.bench.timing import Log, alternate
from ltxgen.bench.work import PLAIN, milliseconds, step_flops
from ltxgen.diffusion.conditions import Conditions as StageConditions
from ltxgen.diffusion.context import Context, Contexts
from ltxgen.diffusion.grids import AudioGrid, VideoGrid
from ltxgen.diffusion.latents import LatentState
from ltxgen.diffusion.noise import NoiseSource
from ltxgen.diffusion.pair import Pair
from ltxgen.guidance.protocol import Pass
from ltxgen.models.transformer import ModalityInput, Transformer
from ltxgen.models.transformer.flops import Flops
from ltxgen.models.transformer.graphs import graphed
from ltxgen.models.transformer.passes import TransformerPass
from ltxgen.parallel.cost import TEXT_TOKENS
from ltxgen.recipe.plan import Plan
from ltxgen.reuse.none import NoneConfig
from ltxgen.sampler.protocol import Denoise as Predict
from ltxgen.sampler.protocol import Evaluation, Memory, OnStep, one_a_step
from ltxgen.stage.denoise import NOISE, Denoise
from ltxgen.stage.protocol import RunContext


@dataclass(frozen=True)
class Step:
    """What a running stage gives its sampler, and the contexts it was given itself."""

    stage: Denoise
    predict: Predict
    states: Pair[LatentState]
    sigma: float
    contexts: Contexts

    def take(self) -> None:
        self.predict(self.states, self.sigma, 0)

    @property
    def passes(self) -> Sequence[Pass]:
        return self.stage.guidance.at(self.sigma).passes(0)

    def inputs(self) -> tuple[ModalityInput, ModalityInput]:
        """Those of a plain pass with the positive prompt."""
        prompt = self.contexts.positive
        assert self.states.video is not None
        assert self.states.audio is not None
        assert prompt.video is not None
        return self._input(self.states.video, prompt.video), self._input(self.states.audio, prompt.audio)

    def _input(self, state: LatentState, text: Tensor) -> ModalityInput:
        level = torch.full((1,), self.sigma, dtype=torch.float32, device=state.latents.device)
        return ModalityInput(state.latents, level[:, None], level, state.positions, text)


class HandOut:
    """A sampler that takes no step: it gives what a step is made of to `receive` while its stage runs."""

    def __init__(self, receive: Callable[[Pair[LatentState], Tensor, Predict], None]) -> None:
        self._receive = receive

    def evaluations(self, sigmas: Sequence[float]) -> Sequence[Evaluation]:
        return one_a_step(sigmas)

    def sample(
        self,
        states: Pair[LatentState],
        sigmas: Tensor,
        denoise: Predict,
        noise: NoiseSource,
        on_step: OnStep | None = None,
        *,
        start: int = 0,
        memory: Memory | None = None,
    ) -> Pair[LatentState]:
        self._receive(states, sigmas, denoise)
        return states


@dataclass(frozen=True)
class Shape:
    """The grids of both modalities, by which stages of several sizes are told apart."""

    video: VideoGrid
    audio: AudioGrid

    @classmethod
    def of(cls, stage: Denoise) -> Shape:
        return cls(stage.video_grid, stage.audio_grid)

    @property
    def tokens(self) -> Pair[int]:
        return Pair(self.video.num_tokens, self.audio.num_tokens)

    def __str__(self) -> str:
        width, height = (side * self.video.spatial_factor for side in (self.video.width, self.video.height))
        return f"{width}x{height}x{self.video.num_frames}"


def case_of(stage: Denoise) -> str:
    return GUIDED if stage.num_passes > 1 else REFINE


def stages_by_shape(plans: Sequence[Plan]) -> dict[Shape, list[Denoise]]:
    """The denoising stages of all plans, at each shape one of each case; small shapes and guided steps first."""
    found: dict[Shape, dict[str, Denoise]] = {}
    for plan in plans:
        for stage in plan.stages.values():
            if isinstance(stage, Denoise):
                found.setdefault(Shape.of(stage), {}).setdefault(case_of(stage), stage)
    by_length = sorted(found.items(), key=lambda item: item[0].video.num_tokens)
    return {shape: [stages[case] for case in (GUIDED, REFINE) if case in stages] for shape, stages in by_length}


def time_steps(
    shape: Shape,
    stages: Sequence[Denoise],
    cases: Sequence[str],
    transformer: Transformer,
    peers: Mapping[str, Forward],
    conditions: Conditions,
) -> list[Entry]:
    """The picked cases at one shape, taking turns with each other and with one forward pass of every peer."""
    stepped = [stage for stage in stages if case_of(stage) in cases]
    entries: list[Entry] = []

    def measure(steps: Sequence[Step]) -> None:
        inputs = steps[0].inputs()
        plain = graphed(transformer, stages[0].setting.graphed_tokens)
        alone = [TransformerPass(*inputs)]
        ours: dict[str, tuple[Sequence[Pass], Callable[[], object]]] = {}
        if FORWARD in cases:
            ours[FORWARD] = ((PLAIN,), lambda: plain.forward_passes(alone))
        for step in steps[: len(stepped)]:
            ours[case_of(step.stage)] = (step.passes, step.take)
        theirs = {name: functools.partial(peer, *inputs) for name, peer in peers.items()}
        differences = _differences(transformer, peers, inputs, conditions.log)
        calls = {case: call for case, (_, call) in ours.items()}
        timings = alternate({**calls, **theirs}, stages[0].setting.device, conditions.log)
        for case, (passes, _) in ours.items():
            figures = {
                name: PeerFigure.of(timings[name], len(passes), differences[name] if case == FORWARD else None)
                for name in theirs
            }
            flops = step_flops(transformer.config, passes, shape.tokens, TEXT_TOKENS)
            floors = _floors(flops, stages[0].setting.dtype, conditions.ceilings)
            details = {
                "video_tokens": shape.video.num_tokens,
                "audio_tokens": shape.audio.num_tokens,
                "passes": len(passes),
                "tflop": flops.total / 1e12,
                "attention_tflop": flops.attention / 1e12,
            }
            entries.append(Entry.of(case, str(shape), timings[case], **floors, peers=figures, details=details))

    while_running(stepped or stages[:1], transformer, conditions.context, measure)
    return entries


def _differences(
    transformer: Transformer, peers: Mapping[str, Forward], inputs: tuple[ModalityInput, ModalityInput], log: Log
) -> dict[str, float]:
    """How far our velocities are from each peer's, whose first forward this is."""
    ours = transformer(*inputs) if peers else ()
    differences = {}
    for name, peer in peers.items():
        started = time.perf_counter()
        differences[name] = relative_l2(ours, peer(*inputs))
        seconds = time.perf_counter() - started
        log(f"  {name}: relative L2 {differences[name]:.1e}, first forward {seconds:.1f} s with what it compiles")
    return differences


def _floors(flops: Flops, dtype: torch.dtype, ceilings: Ceilings) -> dict[str, float | None]:
    name = str(dtype).removeprefix("torch.")
    return {
        "floor_ms": milliseconds(flops, ceilings, name),
        "fp8_floor_ms": milliseconds(flops, ceilings, FP8),
    }


def while_running(
    stages: Sequence[Denoise],
    transformer: Transformer,
    context: RunContext,
    body: Callable[[Sequence[Step]], None],
    steps: tuple[Step, ...] = (),
) -> None:
    """`body` with the step of every stage, inside the run of each: what a stage sets up around its steps is there."""
    if not stages:
        body(steps)
        return
    stage, *rest = stages
    state = random_state(stage, transformer)

    def receive(states: Pair[LatentState], sigmas: Tensor, predict: Predict) -> None:
        step = Step(stage, predict, states, sigmas[0].item(), state[stage.config.context])
        while_running(rest, transformer, context, body, (*steps, step))

    handing_out = copy.copy(stage)  # the plan's own stage still runs whole
    handing_out.sampler = HandOut(receive)
    handing_out.config = replace(stage.config, reuse=NoneConfig())  # what is timed is a step that is computed
    handing_out.run(state, {"transformer": transformer}, context)


def random_state(stage: Denoise, transformer: Transformer) -> dict[str, Any]:
    """What `stage` reads, at random: contexts and, where it starts from latents, those."""
    setting, video, audio = stage.setting, stage.video_grid, stage.audio_grid
    noise = NoiseSource(0, device=setting.device, dtype=setting.dtype)
    config = transformer.config
    widths = [config.caption_channels or stream.context_dim for stream in (config.video, config.audio)]

    def prompt() -> Context:
        return Context(*(noise.draw((1, TEXT_TOKENS, width)) for width in widths))

    nothing_known: StageConditions = Pair((), ())
    state: dict[str, Any] = {NOISE: noise, stage.config.context: Contexts(prompt(), prompt())}
    state |= dict.fromkeys(stage.config.conditions, nothing_known)
    if stage.config.video is not None:
        state[stage.config.video] = noise.draw((1, video.channels, video.frames, video.height, video.width))
    if stage.config.audio is not None:
        state[stage.config.audio] = noise.draw((1, audio.channels, audio.frames, audio.mel_bins))
    return state
