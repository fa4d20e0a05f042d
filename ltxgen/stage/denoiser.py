"""One evaluation of a denoising step: the passes that guidance asks for, at their noise levels, combined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ltxgen.diffusion.context import Context, Contexts
from ltxgen.diffusion.grids import VideoGrid
from ltxgen.diffusion.latents import LatentState, NoiseLevels, to_denoised
from ltxgen.diffusion.pair import Pair
from ltxgen.guidance.protocol import GuidanceByLevel, Pass
from ltxgen.models.transformer import ModalityInput, PassesModel, TransformerPass, Velocities
from ltxgen.parallel.plan import StageParallel
from ltxgen.reuse.protocol import Prediction, Reuse
from ltxgen.stage.protocol import RunContext, Setting


@dataclass(eq=False)
class Denoiser:
    """Predicts the guided clean latents of a step: the sampler's only view of the model.

    `transformer` is what the stage's ranks and its reuse make of it, `levels` are the distinct values of the states'
    denoise masks. `previous` is the last prediction, `calls` how many there were, `passes` the names of those that ran
    since they were last told. `parallel` knows what was exchanged.
    """

    name: str
    setting: Setting
    video_grid: VideoGrid | None
    guidance: GuidanceByLevel
    reuse: Reuse
    parallel: StageParallel
    transformer: PassesModel
    contexts: Contexts
    levels: Pair[NoiseLevels]
    context: RunContext
    previous: Pair[Tensor] | None = None
    calls: int = 0
    passes: list[str] = field(default_factory=list)

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
        results = self._predict(states, sigma, passes)
        if self.calls == 0:
            for number, x0 in enumerate(results):
                self._record(f"call000.forward{number}", x0)
        is_new = passes[0].enabled if passes else Pair(False, False)
        return Prediction(guidance.combine(results, step, self.previous), is_new)

    def _predict(self, states: Pair[LatentState], sigma: float, passes: Sequence[Pass]) -> list[Pair[Tensor]]:
        """The clean latents that each of `passes` predicts. Those with the same modalities run together."""
        found: dict[Pass, Pair[Tensor]] = {}
        for enabled in dict.fromkeys(each.enabled for each in passes):
            alike = [each for each in passes if each.enabled == enabled]
            found |= zip(alike, self._predict_alike(states, sigma, alike), strict=True)
        return [found[each] for each in passes]

    def _predict_alike(self, states: Pair[LatentState], sigma: float, passes: Sequence[Pass]) -> list[Pair[Tensor]]:
        """Of passes that leave out the same modality."""
        timesteps = self.levels.map(lambda levels: levels.timesteps(sigma))

        def level(state: LatentState) -> Tensor:
            own = state.modality_sigma(sigma, self.setting.numerics)
            return torch.full((1,), own, dtype=torch.float32, device=self.setting.device)

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
