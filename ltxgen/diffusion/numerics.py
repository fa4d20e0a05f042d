"""Where the two published states of the official code compute differently, as one object.

Both run LTX-2.3: the launch state (`ltx-core` 1.0.0, March 2026) and the maintained one (1.2.0, August 2026). Every
place that can follow either takes its choice from here, so nothing else asks which of the two is meant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True)
class Numerics:
    """The choices of one official state. A dtype of None is the run's dtype.

    - `video_position_dtype`: of the video tokens' bounds; audio's are always fp32. bf16 is off by up to half a frame.
    - `cross_timestep`: whose timesteps modulate cross-modal attention, each token's own or the other modality's sigma.
    - `guidance_dtype`: in which guided predictions are combined; the result has the run's dtype either way.
    - `skipped_passes`: from which passes of a step a modality that skips it is left out.
    - `noising`: how a token of partial strength is noised, see `ltxgen.diffusion.latents.apply_noise`.
    - `keyframe_span_frames`: how many frames an appended single-image token claims.
    - `vocoder_dtype`: of mel to waveform.
    - `decoded_audio`: the stage whose sound is kept in a run of two.
    - `frozen_sigma`: the noise level that a modality which isn't generated reports, zero or the loop's.
    - `kept_start`: where a modality that a retake keeps whole starts; from noise it is clean by the last step.
    - `negative_prompt_tags`: what leads the default negative prompt.
    """

    name: str
    video_position_dtype: torch.dtype | None
    cross_timestep: Literal["own", "other"]
    guidance_dtype: torch.dtype | None
    skipped_passes: Literal["all", "positive"]
    noising: Literal["lerp", "scaled"]
    keyframe_span_frames: int
    vocoder_dtype: torch.dtype | None
    decoded_audio: Literal["base", "refine"]
    frozen_sigma: Literal["zero", "loop"]
    kept_start: Literal["noise", "clean"]
    negative_prompt_tags: tuple[str, ...]

    @classmethod
    def named(cls, name: str) -> Numerics:
        """`CURRENT` or `LAUNCH`; ValueError for any other name."""
        if name not in _BY_NAME:
            raise ValueError(f"numerics {name!r}: must be one of {', '.join(_BY_NAME)}")
        return _BY_NAME[name]


CURRENT = Numerics(
    name="current",
    video_position_dtype=torch.float32,
    cross_timestep="own",
    guidance_dtype=torch.float32,
    skipped_passes="all",
    noising="lerp",
    keyframe_span_frames=1,
    vocoder_dtype=torch.float32,
    decoded_audio="base",
    frozen_sigma="zero",
    kept_start="noise",
    negative_prompt_tags=(
        "has_subtitles",
        "has_blurbox",
        "transition from black",
        "transition to black",
        "speech_ending_short",
    ),
)

LAUNCH = Numerics(
    name="launch",
    video_position_dtype=None,
    cross_timestep="other",
    guidance_dtype=None,
    skipped_passes="positive",
    noising="scaled",
    keyframe_span_frames=8,
    vocoder_dtype=None,
    decoded_audio="refine",
    frozen_sigma="loop",
    kept_start="clean",
    negative_prompt_tags=(),
)

_BY_NAME = {numerics.name: numerics for numerics in (CURRENT, LAUNCH)}
