"""The guided denoising loop: from noise, or from a latent noised again, to a clean video and audio latent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from itertools import accumulate, pairwise
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from ltxgen.config.errors import Problem
from ltxgen.config.schema import Check, Kind, PositiveFraction, PositiveInt, UnitFloat
from ltxgen.diffusion.conditions import total_appended
from ltxgen.diffusion.grids import AudioGrid, VideoGrid
from ltxgen.diffusion.latents import LatentState, NoiseLevels
from ltxgen.diffusion.noise import NoiseSource
from ltxgen.diffusion.pair import Pair
from ltxgen.diffusion.sigmas import MIN_STEPS
from ltxgen.guidance.protocol import GuidanceByLevel
from ltxgen.models.transformer.graphs import graphed
from ltxgen.parallel.cost import Work
from ltxgen.parallel.shape import MeshShape
from ltxgen.registry import register
from ltxgen.reuse.none import NoneConfig
from ltxgen.sampler.protocol import Evaluation
from ltxgen.schedule.explicit import ExplicitConfig
from ltxgen.schedule.ltx2 import Ltx2Config
from ltxgen.schedule.protocol import Schedule
from ltxgen.stage.checkpoints import Checkpoints
from ltxgen.stage.denoise_problems import (
    guidance_problems,
    latent_problems,
    rate_problems,
    reference_problems,
    reuse_problems,
    schedule_problems,
    step_problems,
)
from ltxgen.stage.denoiser import Denoiser
from ltxgen.stage.initial_states import initial_states
from ltxgen.stage.protocol import PartRequest, RunContext, Setting, Stage, Step

Steps = Annotated[int, Check(f"must be at least {MIN_STEPS}", lambda steps: steps >= MIN_STEPS)]
Modalities = Annotated[
    tuple[Literal["video", "audio"], ...], Check("must be [video, audio] or [audio]", lambda which: "audio" in which)
]
NOISE = "noise"  # the run's generator, which every denoise stage draws from in turn


@register("stage", "denoise")
@dataclass(frozen=True)
class DenoiseConfig:
    """A schedule, a sampler, a guidance, a reuse of earlier steps, LoRAs, and where to start from.

    `steps` are for a schedule of any number of them; `sigmas`, the noise levels themselves, take the schedule's place.
    `scale` is the part of the request's height and width, `rate` that of its frames per second: 1/2 makes every other
    frame. `video` and `audio` name latents to noise again, null starts from noise. `conditions` names what is known
    beforehand, in the order in which it applies; of references among it, `reference_attention` is how much they are
    attended to. `modalities` may be sound alone: the video half of the transformer is then not even loaded. Every
    `checkpoint_every` steps, if that is set, it is kept how far the stage is: an interrupted run goes on from there.
    """

    request_fields: ClassVar = ("height", "width", "num_frames", "fps")

    sampler: Annotated[Any, Kind("sampler")]
    guidance: Annotated[Any, Kind("guidance")]
    context: str
    scale: PositiveFraction = Fraction(1)
    rate: PositiveFraction = Fraction(1)
    schedule: Annotated[Any, Kind("schedule")] = field(default_factory=Ltx2Config)
    reuse: Annotated[Any, Kind("reuse")] = field(default_factory=NoneConfig)
    steps: Steps | None = None
    sigmas: tuple[float, ...] | None = None
    loras: dict[str, float] = field(default_factory=dict)
    video: str | None = None
    audio: str | None = None
    conditions: tuple[str, ...] = ()
    reference_attention: UnitFloat = 1.0
    modalities: Modalities = ("video", "audio")
    checkpoint_every: PositiveInt | None = field(default=None, metadata={"changes_output": False})

    def build(self, name: str, setting: Setting) -> Denoise:
        return Denoise(self, name, setting)


class Denoise(Stage):
    """Writes `<name>.video` (1,C,F,H,W) and `<name>.audio` (1,C,T,M), normalised latents; the latter alone for sound
    alone."""

    def __init__(self, config: DenoiseConfig, name: str, setting: Setting) -> None:
        self.config = config
        self.name = name
        self.setting = setting
        sources = (config.video, config.audio)
        self.reads = (NOISE, config.context, *(source for source in sources if source is not None), *config.conditions)
        self.has_video = "video" in config.modalities
        self.writes = (NOISE, *(f"{name}.{modality}" for modality in ("video", "audio")[not self.has_video :]))
        self.transformer = "transformer" if self.has_video else "audio_transformer"
        self.parts = (PartRequest(self.transformer, setting.dtype, tuple(config.loras.items())),)
        # Whole pixels that stay whole latents: 32 at scale 1, 64 at 1/2, 48 at 2/3.
        self.size_multiple = (VideoGrid.spatial_factor / config.scale).numerator if self.has_video else 1
        self.schedule: Schedule = config.schedule if config.sigmas is None else ExplicitConfig(config.sigmas)
        self.guidance: GuidanceByLevel = config.guidance.build(setting.numerics)
        self.sampler = config.sampler.build()
        self.appended = total_appended([])  # once `infer` knows

    @property
    def sigmas(self) -> Tensor:
        """(steps + 1,) fp32 on the CPU. ValueError where the schedule has none."""
        return torch.tensor(self.schedule.levels(self.config.steps, self._num_tokens), dtype=torch.float32)

    @property
    def _num_tokens(self) -> int:
        """Of the modality that the schedule goes by."""
        return (self.video_grid if self.has_video else self.audio_grid).num_tokens

    @property
    def evaluations(self) -> Sequence[Evaluation]:
        """The predictions that sampling takes. ValueError where the sampler can't step through the sigmas."""
        return self.sampler.evaluations(self.sigmas.tolist())

    @property
    def guidance_ranges(self) -> Sequence[int]:
        """A number for each evaluation, another one wherever the guidance changes."""
        guidances = [self.guidance.at(sigma) for sigma, _ in self.evaluations]
        return list(accumulate((one != other for one, other in pairwise(guidances)), initial=0))

    @property
    def notes(self) -> Sequence[str]:
        """What a plan has to say of this stage, once `infer` found nothing wrong with it."""
        note = self.config.reuse.note(self.guidance_ranges)
        if note is None:
            return []
        graphs = "; its steps are not recorded as CUDA graphs" if self.config.reuse.decides and self.is_small else ""
        return [f"stages.{self.name}.reuse {note}{graphs}"]

    @property
    def is_small(self) -> bool:
        """Whether its steps, as this rank takes part in them, are recorded as CUDA graphs where they can be."""
        parallel, num_tokens = self.setting.parallel, self.video_grid.num_tokens if self.has_video else 0
        shape = MeshShape() if parallel is None else parallel.stage_shape(self.num_passes)
        return shape.own_tokens(num_tokens) <= self.setting.graphed_tokens > 0

    @property
    def grids(self) -> Pair[Any]:
        return Pair(self.video_grid if self.has_video else None, self.audio_grid)

    @property
    def video_grid(self) -> VideoGrid:
        request, scale = self.setting.request, self.config.scale
        num_frames = int((request.num_frames - 1) * self.config.rate) + 1
        return VideoGrid.from_pixels(num_frames, int(request.height * scale), int(request.width * scale))

    @property
    def audio_grid(self) -> AudioGrid:
        return AudioGrid.from_video(self.setting.request.num_frames, self.setting.request.fps)

    def infer(self, shapes: dict[str, Any]) -> list[Problem]:
        problems = [*step_problems(self), *guidance_problems(self, shapes), *reuse_problems(self)]
        self.appended = total_appended([shapes[name] for name in self.config.conditions if name in shapes])
        problems += reference_problems(self, shapes)
        request = self.setting.request
        if request.height % self.size_multiple or request.width % self.size_multiple:
            return problems  # the plan says so, once for all stages
        if wrong := rate_problems(self):
            return problems + wrong
        problems += schedule_problems(self)
        if self.has_video:
            shapes[f"{self.name}.video"] = (self.video_grid.frames, self.video_grid.height, self.video_grid.width)
            problems += latent_problems(self, shapes)
        if self.audio_grid.frames < 1:
            problems.append(
                Problem("request.fps", self.setting.request.fps, "too high: the sound would have no length")
            )
        shapes[f"{self.name}.audio"] = (self.audio_grid.frames,)
        return problems

    def activation_bytes(self, free_bytes: int) -> int:
        parallel, work = self.setting.parallel, self.work
        assert parallel is not None, "asked of plans that can run"
        assert work is not None, "infer refuses a stage without a schedule"
        return parallel.cost.activation_bytes(work, parallel.shape)

    def describe(self) -> dict[str, Any]:
        work = self.work
        assert work is not None, "infer refuses a stage without a schedule"
        described: dict[str, Any] = {
            "sigmas": self.sigmas.tolist(),
            "passes": list(map(len, work.steps)),
            "loras": dict(self.config.loras),
            "tokens": vars(work.tokens),
        }
        if not isinstance(self.config.reuse, NoneConfig):
            described["reuse"] = {"kind": self.config.reuse.kind}
        parallel = self.setting.parallel
        if parallel is not None and parallel.shape.num_ranks > 1:
            traffic = parallel.traffic(work)
            described["mesh"] = str(parallel.stage_shape(self.num_passes))
            described["received bytes a step and rank"] = traffic.by_kind
        return described

    @property
    def work(self) -> Work | None:
        if rate_problems(self) or step_problems(self) or schedule_problems(self):
            return None
        evaluated = self.config.reuse.evaluated(self.guidance_ranges)
        steps = tuple(
            self.guidance.at(sigma).passes(step) if computed else []
            for (sigma, step), computed in zip(self.evaluations, evaluated, strict=True)
        )
        tokens = self.grids.map(lambda grid, more: grid.num_tokens + more.tokens, self.appended)
        is_masked = self.appended.map(
            lambda more: more.attention is not None and more.attention * self.config.reference_attention < 1
        )
        roles = [f"{modality}_self" for modality, masked in vars(is_masked).items() if masked]
        return Work(steps, tokens, masked=tuple(roles), kept_hidden=self.config.reuse.kept_hidden)

    @property
    def num_passes(self) -> int:
        """The most passes that a step may have: in one numbered 0 no modality sits out."""
        return max(len(guidance.passes(0)) for guidance in self.guidance.every)

    def run(self, state: Mapping[str, Any], parts: Mapping[str, Any], context: RunContext) -> dict[str, Any]:
        sigmas = self.sigmas
        context.record(f"{self.name}.sigmas", sigmas)
        states = initial_states(self, state, state[NOISE], sigmas[0].item(), context)
        assert self.setting.parallel is not None, "a plan that can run knows its ranks"
        decides = self.config.reuse.decides
        parallel = self.setting.parallel.stage(self.num_passes, self.setting.device.type, all_predict=decides)
        reuse = self.config.reuse.build(self.guidance_ranges)
        transformer = reuse.wrap(parts[self.transformer], parallel)
        denoiser = Denoiser(
            name=self.name,
            setting=self.setting,
            video_grid=self.grids.video,
            guidance=self.guidance,
            reuse=reuse,
            parallel=parallel,
            transformer=graphed(
                transformer,
                self.setting.graphed_tokens * parallel.layout.num_shards,
                partial(parallel.wrap, dtype=self.setting.dtype),
                parallel.counted,
            ),
            contexts=state[self.config.context],
            levels=states.map(lambda each: NoiseLevels.of(each.denoise_mask)),
            context=context,
        )
        context.progress.begin(len(self.evaluations))
        final = self._sample(states, sigmas, denoiser, state[NOISE], context)
        latents = self._latents(final)
        written = {f"{self.name}.{modality}": value for modality, value in vars(latents).items() if value is not None}
        for name, value in written.items():
            context.record(name.replace(".", ".final."), value)
        context.report("communication", parallel.communication)
        if facts := reuse.facts:
            context.report("reuse", {"kind": self.config.reuse.kind, **facts})
        return {NOISE: state[NOISE], **written}

    def _sample(
        self,
        states: Pair[LatentState],
        sigmas: Tensor,
        denoiser: Denoiser,
        noise: NoiseSource,
        context: RunContext,
    ) -> Pair[LatentState]:
        tell = None if context.stepped is None else partial(self._tell_step, context.stepped, denoiser)
        every, num_steps = self.config.checkpoint_every, len(sigmas) - 1
        if every is None or context.steps is None:
            return self.sampler.sample(states, sigmas, denoiser, noise, tell)
        checkpoints = Checkpoints(every, context.steps, num_steps, denoiser, noise)
        states, resumed = checkpoints.resume(states)
        if resumed:
            context.report("resumed after step", resumed["start"])
            context.progress.advance(denoiser.calls)

        def on_step(step: int, states: Pair[LatentState], memory: Mapping[str, Tensor] | None = None) -> None:
            checkpoints(step, states, memory)
            if tell is not None:
                tell(step, states)

        return self.sampler.sample(states, sigmas, denoiser, noise, on_step, **resumed)

    def _latents(self, states: Pair[LatentState]) -> Pair[Tensor]:
        return self.grids.map(lambda grid, state: grid.unpatchify(state.result), states)

    def _tell_step(
        self,
        tell: Callable[[Step], None],
        denoiser: Denoiser,
        number: int,
        states: Pair[LatentState],
        memory: Mapping[str, Tensor] | None = None,
    ) -> None:
        assert denoiser.previous is not None, "a step has a prediction"
        expected = states.map(lambda state, x0: state.with_(latents=x0), denoiser.previous)
        latents, denoised = self._latents(states), self._latents(expected)
        sigmas, passes = self.sigmas, tuple(denoiser.passes)
        denoiser.passes.clear()
        tell(Step(self.name, number, len(sigmas) - 1, latents, denoised, float(sigmas[number]), passes))
