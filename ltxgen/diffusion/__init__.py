"""Latents and their tokens, positions, noise and schedules: what samplers and stages compute with."""

from ltxgen.diffusion.grids import AudioGrid, VideoGrid
from ltxgen.diffusion.latents import LatentState, apply_noise, blend_clean, to_denoised, to_velocity
from ltxgen.diffusion.noise import NoiseSource, NoiseState
from ltxgen.diffusion.numerics import CURRENT, LAUNCH, Numerics
from ltxgen.diffusion.pair import Pair
from ltxgen.diffusion.positions import audio_positions, keyframe_positions, reference_positions, video_positions
from ltxgen.diffusion.sigmas import MIN_STEPS, ltx_sigmas, sigmas_problem

__all__ = [
    "CURRENT",
    "LAUNCH",
    "MIN_STEPS",
    "AudioGrid",
    "LatentState",
    "NoiseSource",
    "NoiseState",
    "Numerics",
    "Pair",
    "VideoGrid",
    "apply_noise",
    "audio_positions",
    "blend_clean",
    "keyframe_positions",
    "ltx_sigmas",
    "reference_positions",
    "sigmas_problem",
    "to_denoised",
    "to_velocity",
    "video_positions",
]
