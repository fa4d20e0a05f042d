"""Multi-modal guidance: away from the negative prompt, from weakened self attention and from isolated modalities.

Per modality, on the predicted x0 with c the positive pass:

    g = c + (cfg - 1)·(c - negative) + stg·(c - stg pass) + (modality - 1)·(c - isolated pass)
    g = g·(rescale·std(c) / std(g) + 1 - rescale)

Classifier-free guidance https://arxiv.org/abs/2207.12598, spatio-temporal guidance https://arxiv.org/abs/2411.18664,
rescaling https://arxiv.org/abs/2305.08891. Agrees with the official `MultiModalGuider`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ltxgen.config.errors import MISSING, Problem
from ltxgen.config.schema import NonNegativeFloat, NonNegativeInt, UnitFloat
from ltxgen.diffusion.numerics import Numerics
from ltxgen.diffusion.pair import Pair
from ltxgen.guidance.protocol import Pass
from ltxgen.models.transformer import Perturbation
from ltxgen.registry import register


@dataclass(frozen=True)
class ModalityGuidance:
    """How one modality is guided; the defaults leave it alone.

    Blocks are counted from 0. With `skip_step` n only every (n + 1)-th step is predicted anew, the steps between repeat
    the last prediction.
    """

    cfg_scale: NonNegativeFloat = 1.0
    stg_scale: NonNegativeFloat = 0.0
    stg_blocks: tuple[NonNegativeInt, ...] = ()
    rescale_scale: UnitFloat = 0.0
    modality_scale: NonNegativeFloat = 1.0
    skip_step: NonNegativeInt = 0

    def weights(self) -> dict[str, float]:
        """How far to go away from each pass that this modality asks for."""
        weights = {}
        if not math.isclose(self.cfg_scale, 1.0, rel_tol=1e-9):
            weights["negative"] = self.cfg_scale - 1
        if self.stg_scale != 0:
            weights["stg"] = self.stg_scale
        if not math.isclose(self.modality_scale, 1.0, rel_tol=1e-9):
            weights["isolated"] = self.modality_scale - 1
        return weights

    def perturbed_blocks(self) -> frozenset[int]:
        return frozenset(self.stg_blocks) if "stg" in self.weights() else frozenset()

    def sits_out(self, step: int) -> bool:
        return step % (self.skip_step + 1) != 0


@register("guidance", "multimodal")
@dataclass(frozen=True)
class MultimodalConfig:
    video: ModalityGuidance = field(default_factory=ModalityGuidance)
    audio: ModalityGuidance = field(default_factory=ModalityGuidance)

    def build(self, numerics: Numerics) -> MultimodalGuidance:
        return MultimodalGuidance(self.video, self.audio, numerics.guidance_dtype, numerics.skipped_passes)

    def problems(self, path: str, num_blocks: int) -> list[Problem]:
        problems = []
        for name, modality in (("video", self.video), ("audio", self.audio)):
            where = f"{path}.{name}.stg_blocks"
            if modality.stg_scale != 0 and not modality.stg_blocks:
                problems.append(Problem(where, MISSING, "must name a block when stg_scale is not 0; or set that to 0"))
            if any(block >= num_blocks for block in modality.stg_blocks):
                allowed = f"must be between 0 and {num_blocks - 1}, this transformer has {num_blocks} blocks"
                problems.append(Problem(where, list(modality.stg_blocks), allowed))
        return problems


@dataclass(frozen=True)
class MultimodalGuidance:
    """Up to four passes a step, one where all scales are neutral. Combines in `dtype`, None is the predictions' own.

    The same at every noise level.
    """

    video: ModalityGuidance
    audio: ModalityGuidance
    dtype: torch.dtype | None
    skipped_passes: Literal["all", "positive"] = "all"

    @property
    def every(self) -> Sequence[MultimodalGuidance]:
        return (self,)

    def at(self, sigma: float) -> MultimodalGuidance:
        return self

    def passes(self, step: int) -> list[Pass]:
        """Text, then what the modalities predicted in this step ask for; nothing if both sit out."""
        predicted = [modality for modality in (self.video, self.audio) if not modality.sits_out(step)]
        if not predicted:
            return []
        enabled = Pair(not self.video.sits_out(step), not self.audio.sits_out(step))
        asked = {"text"}.union(*(modality.weights() for modality in predicted))
        in_negative = enabled if self.skipped_passes == "all" else Pair(True, True)
        stg = Perturbation(self.video.perturbed_blocks(), self.audio.perturbed_blocks())
        every = (
            Pass("text", "positive", Perturbation(), enabled),
            Pass("negative", "negative", Perturbation(), in_negative),
            Pass("stg", "positive", stg, enabled),
            Pass("isolated", "positive", Perturbation(isolate_modalities=True), enabled),
        )
        return [each for each in every if each.name in asked]

    def combine(self, results: Sequence[Pair[Tensor]], step: int, previous: Pair[Tensor] | None = None) -> Pair[Tensor]:
        """Guided x0 from the results of `passes(step)`, in the predictions' dtype."""
        names = [each.name for each in self.passes(step)]
        assert len(results) == len(names), f"{len(results)} results for the passes {names}"

        def guided(modality: ModalityGuidance, last: Any, *predictions: Any) -> Any:
            if modality.sits_out(step) or predictions[0] is None:
                return last
            return guide(dict(zip(names, predictions, strict=True)), modality, self.dtype)

        return Pair(self.video, self.audio).map(guided, previous or Pair(None, None), *results)


def guide(predictions: Mapping[str, Tensor], modality: ModalityGuidance, dtype: torch.dtype | None) -> Tensor:
    """One modality's guided x0 from each pass's x0 (B, T, C); deviations are over the whole tensor and unbiased."""
    text = predictions["text"].to(dtype or predictions["text"].dtype)
    guided = text
    for name, weight in modality.weights().items():
        guided = guided + weight * (text - predictions[name].to(text.dtype))
    if modality.rescale_scale != 0:
        factor = text.std() / guided.std()
        guided = guided * (modality.rescale_scale * factor + (1 - modality.rescale_scale))
    return guided.to(predictions["text"].dtype)
