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

from ltxgen.artifacts.lora import IC_LORA
from ltxgen.artifacts.safetensors_file import BadFile
from ltxgen.config.errors import MISSING, Problem
from ltxgen.config.schema import Check, Kind, PositiveFraction, PositiveInt, UnitFloat
from ltxgen.diffusion.conditions import joined, total_appended, weakened
from ltxgen.diffusion.context import Context, Contexts
from ltxgen.diffusion.grids import AudioGrid, VideoGrid
from ltxgen.diffusion.latents import LatentState, NoiseLevels, apply_noise, to_denoised
from ltxgen.diffusion.noise import NoiseSource
from ltxgen.diffusion.pair import Pair
from ltxgen.diffusion.positions import audio_positions, video_positions
from ltxgen.diffusion.sigmas import MIN_STEPS
from ltxgen.guidance.protocol import GuidanceByLevel, Pass
from ltxgen.models.transformer import ModalityInput, Transformer, TransformerConfig, TransformerPass, Velocities
from ltxgen.models.transformer.graphs import graphed
from ltxgen.parallel.cost import Work
from ltxgen.parallel.plan import StageParallel
from ltxgen.registry import register
from ltxgen.reuse.none import NoneConfig
from ltxgen.reuse.protocol import Prediction
from ltxgen.sampler.protocol import Evaluation
from ltxgen.schedule.explicit import ExplicitConfig
from ltxgen.schedule.ltx2 import Ltx2Config
from ltxgen.schedule.protocol import Schedule
from ltxgen.stage.checkpoints import Checkpoints
from ltxgen.stage.protocol import PartRequest, RunContext, Setting, Step

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


class Denoise:
    """Writes `<name>.video` (1,C,F,H,W) and `<name>.audio` (1,C,T,M), normalised latents; the latter alone for sound
    alone."""

    makes_stream = False

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
        num_tokens = self.num_passes * (self.video_grid.num_tokens if self.has_video else 0)
        ungraphed = self.config.reuse.decides and num_tokens <= self.setting.graphed_tokens > 0
        graphs = "; its steps are not recorded as CUDA graphs" if ungraphed else ""
        return [f"stages.{self.name}.reuse {note}{graphs}"]

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
        problems = [*self._step_problems(), *self._guidance_problems(shapes), *self._reuse_problems()]
        self.appended = total_appended([shapes[name] for name in self.config.conditions if name in shapes])
        problems += self._reference_problems(shapes)
        request = self.setting.request
        if request.height % self.size_multiple or request.width % self.size_multiple:
            return problems  # the plan says so, once for all stages
        if wrong := self._rate_problems():
            return problems + wrong
        problems += self._schedule_problems()
        if self.has_video:
            problems += self._video_problems(shapes)
        if self.audio_grid.frames < 1:
            problems.append(
                Problem("request.fps", self.setting.request.fps, "too high: the sound would have no length")
            )
        shapes[f"{self.name}.audio"] = (self.audio_grid.frames,)
        return problems

    def _video_problems(self, shapes: dict[str, Any]) -> list[Problem]:
        """Whether what comes in has the stage's size; notes what comes out."""
        grid = self.video_grid
        wanted = shapes[f"{self.name}.video"] = (grid.frames, grid.height, grid.width)
        given = shapes.get(self.config.video or "", wanted)
        if given == wanted:
            return []
        message = (
            f"holds {_by(given)} latents (frames x height x width), and at scale {self.config.scale} this stage "
            f"works on {_by(wanted)}; match its scale and rate to the upscaler"
        )
        return [Problem(f"stages.{self.name}.video", self.config.video, message)]

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
            traffic = parallel.traffic(max(work.steps, key=len), work.tokens, self.setting.dtype.itemsize)
            described["mesh"] = str(parallel.stage_shape(self.num_passes))
            described["received bytes a step and rank"] = traffic.by_kind
        return described

    @property
    def work(self) -> Work | None:
        if self._rate_problems() or self._step_problems() or self._schedule_problems():
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
        states = self._initial_states(state, sigmas[0].item(), context)
        assert self.setting.parallel is not None, "a plan that can run knows its ranks"
        decides = self.config.reuse.decides
        parallel = self.setting.parallel.stage(self.num_passes, self.setting.device.type, all_predict=decides)
        denoiser = Denoiser(self, parallel, parts[self.transformer], state[self.config.context], states, context)
        context.progress.begin(len(self.evaluations))
        final = self._sample(states, sigmas, denoiser, state[NOISE], context)
        latents = self._latents(final)
        written = {f"{self.name}.{modality}": value for modality, value in vars(latents).items() if value is not None}
        for name, value in written.items():
            context.record(name.replace(".", ".final."), value)
        context.report("communication", parallel.communication)
        if facts := denoiser.reuse.facts:
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

    def _initial_states(self, state: Mapping[str, Any], sigma: float, context: RunContext) -> Pair[LatentState]:
        """Both modalities at the first noise level. Video draws before audio: the order is part of a seed's meaning."""
        numerics, device, dtype = self.setting.numerics, self.setting.device, self.setting.dtype
        source: NoiseSource = state[NOISE]
        known = weakened(joined([state[each] for each in self.config.conditions]), self.config.reference_attention)

        def start(modality: str, grid: VideoGrid | AudioGrid, name: str | None, positions: Tensor) -> LatentState:
            shape = (1, grid.num_tokens, grid.token_width)
            tokens = torch.zeros(shape, dtype=dtype, device=device) if name is None else grid.patchify(state[name])
            clean = LatentState.from_tokens(tokens, positions.to(device))
            for condition in getattr(known, modality):
                clean = condition.apply(clean, numerics)
            noise = source.draw(clean.latents.shape)
            noised = apply_noise(clean, noise, sigma, numerics)
            context.record(f"{self.name}.noise.{modality}", noise)
            context.record(f"{self.name}.noised.{modality}", noised.latents)
            context.record(f"{self.name}.positions.{modality}", noised.positions)
            return noised

        def start_video() -> LatentState:
            fps = self.setting.request.fps * self.config.rate
            positions = video_positions(self.video_grid, fps, numerics.video_position_dtype or dtype)
            return start("video", self.video_grid, self.config.video, positions)

        video = start_video() if self.has_video else None
        return Pair(video, start("audio", self.audio_grid, self.config.audio, audio_positions(self.audio_grid)))

    def _rate_problems(self) -> list[Problem]:
        """Frames of which so many a second are no whole latents."""
        num_frames, step = self.setting.request.num_frames, (VideoGrid.time_factor / self.config.rate).numerator
        if not self.has_video or (num_frames - 1) % step == 0:
            return []
        below = (num_frames - 1) // step * step + 1
        message = (
            f"must be {step}k + 1, since stage {self.name} makes {self.config.rate} of the frames; the nearest are "
            f"{below} and {below + step}"
        )
        return [Problem("request.num_frames", num_frames, message)]

    def _step_problems(self) -> list[Problem]:
        """Of what says how many steps there are."""
        where, config = f"stages.{self.name}", self.config
        if config.sigmas is not None and config.steps is None:
            return []
        if config.sigmas is not None or (self.schedule.takes_steps and config.steps is None):
            return [Problem(f"{where}.steps", config.steps, f"set either it or {where}.sigmas, the other to null")]
        if not self.schedule.takes_steps and config.steps is not None:
            message = (
                f"the schedule `{config.schedule.kind}` has its own steps; set it to null, or take one of any number "
                f"with schedule@{where}.schedule=ltx2"
            )
            return [Problem(f"{where}.steps", config.steps, message)]
        return []

    def _schedule_problems(self) -> list[Problem]:
        """Of the noise levels, for a request whose sizes fit."""
        if self._step_problems():
            return []
        where, config = f"stages.{self.name}", self.config
        try:
            sigmas = self.sigmas
        except ValueError as error:
            if config.sigmas is None:
                return [Problem(f"{where}.schedule", config.schedule.kind, str(error))]
            return [Problem(f"{where}.sigmas", list(config.sigmas), str(error))]
        try:
            evaluations = self.sampler.evaluations(sigmas.tolist())
        except ValueError as error:
            return [Problem(f"{where}.sampler", config.sampler.kind, f"{error}; the sigmas are {sigmas.tolist()}")]
        if len(evaluations) >= len(sigmas) and not isinstance(config.reuse, NoneConfig):
            message = (
                f"the sampler `{config.sampler.kind}` takes the difference of two evaluations a step, which have to "
                f"be exact; use reuse@{where}.reuse=none, or a sampler that evaluates once a step"
            )
            return [Problem(f"{where}.reuse", config.reuse.kind, message)]
        return []

    def _reuse_problems(self) -> list[Problem]:
        """Of what the request's sizes don't change."""
        where, config = f"stages.{self.name}", self.config
        checkpoint, problems = self.setting.artifacts.get("checkpoint"), []
        if config.reuse.decides and config.checkpoint_every is not None:
            message = (
                f"a stage can't go on from a checkpoint with the reuse `{config.reuse.kind}`, which depends on hidden "
                "states; set it to null, or take another reuse"
            )
            problems.append(Problem(f"{where}.checkpoint_every", config.checkpoint_every, message))
        if checkpoint is None:
            return problems
        try:
            num_blocks = TransformerConfig.from_metadata(checkpoint.config).num_layers
        except (BadFile, ValueError):
            return problems  # the checkpoint's own check says what is wrong with it
        return problems + config.reuse.problems(f"{where}.reuse", num_blocks)

    def _reference_problems(self, shapes: Mapping[str, Any]) -> list[Problem]:
        """An IC-LoRA and references go together."""
        if any(name not in shapes for name in self.config.conditions):
            return []  # what keeps them from being known is said elsewhere
        where, strength = f"stages.{self.name}.loras", self.config.loras.get(IC_LORA, 0.0)
        has_references = any(more is not None and more.attention is not None for more in vars(self.appended).values())
        if has_references and not strength:
            message = f"the references that this stage reads mean nothing without an IC-LoRA; set {where}.{IC_LORA}=1.0"
            return [Problem(f"{where}.{IC_LORA}", strength, message)]
        if strength and not has_references:
            message = (
                f"is missing: stage {self.name} has an IC-LoRA, which works from references; give "
                f"request.references=[{{path: FILE}}], or take the LoRA out with {where}.{IC_LORA}=0"
            )
            return [Problem("request.references", MISSING, message)]
        return []

    def _guidance_problems(self, shapes: Mapping[str, Any]) -> list[Problem]:
        passes = [each for guidance in self.guidance.every for each in guidance.passes(0)]
        where = f"stages.{self.name}.guidance"
        problems = []
        known = shapes.get(self.config.context, ())
        if known and any(each.context not in known for each in passes):
            message = "needs the negative prompt, which the prompt stage leaves out; set its `negative` to true"
            problems.append(Problem(where, MISSING, message))
        if known and self.has_video and "video" not in known:
            message = "holds no prompt for video; set video: true in the stage that encodes it"
            problems.append(Problem(f"stages.{self.name}.context", self.config.context, message))
        checkpoint = self.setting.artifacts.get("checkpoint")
        if checkpoint is None:
            return problems
        if checkpoint.is_distilled and self.num_passes > 1:
            message = (
                f"{checkpoint.file} is distilled and runs without guidance, which would add grain; use the dev "
                "checkpoint, or guidance `none` in this stage"
            )
            problems.append(Problem(where, self.config.guidance.kind, message))
        try:
            num_blocks = TransformerConfig.from_metadata(checkpoint.config).num_layers
        except (BadFile, ValueError):
            return problems  # the checkpoint's own check says what is wrong with it
        return problems + (self.config.guidance.problems(where, num_blocks) if self.num_passes > 1 else [])


class Denoiser:
    """Predicts the guided clean latents of a step: the sampler's only view of the model."""

    def __init__(
        self,
        stage: Denoise,
        parallel: StageParallel,
        transformer: Transformer,
        contexts: Contexts,
        states: Pair[LatentState],
        context: RunContext,
    ) -> None:
        self.name = stage.name
        self.video_grid = stage.grids.video
        self.device = stage.setting.device
        self.numerics = stage.setting.numerics
        self.guidance = stage.guidance
        self.parallel = parallel
        self.reuse = stage.config.reuse.build(stage.guidance_ranges)
        self.transformer = graphed(parallel.wrap(self.reuse.wrap(transformer, parallel)), stage.setting.graphed_tokens)
        self.contexts = contexts
        self.context = context
        self.previous: Pair[Tensor] | None = None
        self.calls = 0
        self.passes: list[str] = []  # that ran since they were last told
        self.levels = states.map(lambda state: NoiseLevels.of(state.denoise_mask))

    def __call__(self, states: Pair[LatentState], sigma: float, step: int) -> Pair[Tensor]:
        guided = self.reuse.predict(self.calls, sigma, partial(self._evaluate, states, sigma, step))
        self._record(f"call{self.calls:03d}.x0", guided)
        if self.video_grid is not None and guided.video is not None and states.video is not None:
            tokens = guided.video[:, : states.video.num_generated]
            self.context.watcher.show(self.name, step, self.video_grid.unpatchify(tokens))
        self.previous = guided
        self.calls += 1
        self.context.progress.advance()
        return guided

    def _evaluate(self, states: Pair[LatentState], sigma: float, step: int) -> Prediction:
        guidance = self.guidance.at(sigma)
        passes = guidance.passes(step)
        names = [each.name for each in passes]
        self.passes += names
        self.context.progress.note(", ".join(names))
        like = states.map(lambda state: state.latents)
        results = self.parallel.predict_passes(passes, partial(self._predict, states, sigma, passes), like)
        if self.calls == 0:
            for number, x0 in enumerate(results):
                self._record(f"call000.forward{number}", x0)
        is_new = passes[0].enabled if passes else Pair(False, False)
        return Prediction(guidance.combine(results, step, self.previous), is_new)

    def _predict(
        self, states: Pair[LatentState], sigma: float, of_step: Sequence[Pass], passes: Sequence[Pass]
    ) -> list[Pair[Tensor]]:
        """The clean latents that each of `passes` predicts, this rank's `of_step`.

        Passes with the same modalities run together. Where ranks depend on each other's calls, all run each kind.
        """
        found: dict[Pass, Pair[Tensor]] = {}
        for enabled in dict.fromkeys(each.enabled for each in of_step):
            alike = [each for each in passes if each.enabled == enabled]
            if not alike and self.parallel.all_predict:
                alike = [next(each for each in of_step if each.enabled == enabled)]
            if alike:
                found |= zip(alike, self._predict_alike(states, sigma, alike), strict=True)
        return [found[each] for each in passes]

    def _predict_alike(self, states: Pair[LatentState], sigma: float, passes: Sequence[Pass]) -> list[Pair[Tensor]]:
        """Of passes that leave out the same modality."""
        timesteps = self.levels.map(lambda levels: levels.timesteps(sigma))

        def level(state: LatentState) -> Tensor:
            own = state.modality_sigma(sigma, self.numerics)
            return torch.full((1,), own, dtype=torch.float32, device=self.device)

        levels = states.map(level)

        def modality(
            state: LatentState, masks: NoiseLevels, times: Tensor, level: Tensor, text: Tensor, enabled: bool
        ) -> ModalityInput:
            return ModalityInput(
                state.latents,
                times,
                level,
                state.positions,
                text,
                timestep_index=masks.index,
                attention_mask=state.attention,
                enabled=enabled,
            )

        def inputs(each: Pass) -> TransformerPass:
            prompt: Context | None = getattr(self.contexts, each.context)
            assert prompt is not None, "infer refuses a guidance whose contexts are not encoded"
            texts = states.map(_text, _streams(prompt), _streams(self.contexts.positive))
            both = states.map(modality, self.levels, timesteps, levels, texts, each.enabled)
            return TransformerPass(both.video, both.audio, each.perturbation)

        def denoised(velocities: Velocities) -> Pair[Tensor]:
            # A modality that sits out has no velocity; guidance doesn't ask for its result.
            return Pair(*velocities).map(
                lambda velocity, state: to_denoised(state.latents, velocity, state.timesteps(sigma)), states
            )

        return list(map(denoised, self.transformer.forward_passes(list(map(inputs, passes)))))

    def _record(self, name: str, values: Pair[Tensor]) -> None:
        for modality in ("video", "audio"):
            value = getattr(values, modality)
            if value is not None:
                self.context.record(f"{self.name}.{name}.{modality}", value)


def _streams(context: Context) -> Pair[Tensor]:
    return Pair(context.video, context.audio)


def _text(state: LatentState, own: Tensor, positive: Tensor) -> Tensor:
    """What a modality reads in a pass that is for `own`."""
    return positive if state.role == "given" else own


def _by(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))
