"""Where a denoise stage starts: what is known of its latents, under noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ltxgen.diffusion.conditions import joined, weakened
from ltxgen.diffusion.grids import AudioGrid, VideoGrid
from ltxgen.diffusion.latents import LatentState, apply_noise
from ltxgen.diffusion.noise import NoiseSource
from ltxgen.diffusion.pair import Pair
from ltxgen.diffusion.positions import audio_positions, video_positions
from ltxgen.stage.protocol import RunContext

if TYPE_CHECKING:
    from ltxgen.stage.denoise import Denoise


def initial_states(
    stage: Denoise, state: Mapping[str, Any], source: NoiseSource, sigma: float, context: RunContext
) -> Pair[LatentState]:
    """Both modalities at the first noise level. Video draws before audio: the order is part of a seed's meaning."""
    config, setting = stage.config, stage.setting
    numerics, device, dtype = setting.numerics, setting.device, setting.dtype
    known = weakened(joined([state[each] for each in config.conditions]), config.reference_attention)

    def start(modality: str, grid: VideoGrid | AudioGrid, name: str | None, positions: Tensor) -> LatentState:
        shape = (1, grid.num_tokens, grid.token_width)
        tokens = torch.zeros(shape, dtype=dtype, device=device) if name is None else grid.patchify(state[name])
        clean = LatentState.from_tokens(tokens, positions.to(device))
        for condition in getattr(known, modality):
            clean = condition.apply(clean, numerics)
        noise = source.draw(clean.latents.shape)
        noised = apply_noise(clean, noise, sigma, numerics)
        context.record(f"{stage.name}.noise.{modality}", noise)
        context.record(f"{stage.name}.noised.{modality}", noised.latents)
        context.record(f"{stage.name}.positions.{modality}", noised.positions)
        return noised

    def start_video() -> LatentState:
        fps = setting.request.fps * config.rate
        positions = video_positions(stage.video_grid, fps, numerics.video_position_dtype or dtype)
        return start("video", stage.video_grid, config.video, positions)

    video = start_video() if stage.has_video else None
    return Pair(video, start("audio", stage.audio_grid, config.audio, audio_positions(stage.audio_grid)))
