"""Where tokens stand in time and space: bounds that the transformer's rotary embedding reads.

Computed on the CPU whatever the run's device (a GPU divides by a number as it multiplies by its inverse, one ulp
off), so positions are the same everywhere. Agrees with the official ltx_core/components/patchifiers.py and tools.py.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from ltxgen.diffusion.grids import AudioGrid, VideoGrid


def video_positions(grid: VideoGrid, fps: float | Fraction, dtype: torch.dtype = torch.float32) -> Tensor:
    """Bounds [start, end) of every video token: (1, 3, T, 2), axes time in seconds, height and width in pixels.

    Seconds are formed in fp32, then all is rounded to `dtype`.
    """
    return _in_space(grid, _causal_bounds(grid.frames, grid.time_factor), fps).to(dtype)


def keyframe_positions(grid: VideoGrid, fps: float | Fraction, frame: float, span_frames: int) -> Tensor:
    """Bounds of the tokens of one picture at pixel frame `frame`, (1, 3, T, 2) fp32, for a `grid` of one latent frame.

    It claims `span_frames` frames; at frame 0 one, as the first latent frame of a video does.
    """
    return _in_space(grid, torch.tensor([[frame, frame + (span_frames if frame else 1)]]), fps)


def reference_positions(grid: VideoGrid, fps: float | Fraction, downscale_factor: int) -> Tensor:
    """Bounds of the tokens of a clip that is so many times smaller than the video it is the reference for, whose pixels
    they count: (1, 3, T, 2) fp32."""
    return video_positions(grid, fps) * torch.tensor([1, downscale_factor, downscale_factor])[None, :, None, None]


def _in_space(grid: VideoGrid, frames: Tensor, fps: float | Fraction) -> Tensor:
    """Bounds of all tokens, (1, 3, T, 2) fp32, whose latent frames have the bounds `frames` (F, 2)."""
    seconds = frames.float() / float(fps)
    rows = _bounds(grid.height, grid.spatial_factor)
    columns = _bounds(grid.width, grid.spatial_factor)
    size = (grid.frames, grid.height, grid.width, 2)
    axes = (
        seconds[:, None, None].expand(size),
        rows[None, :, None].expand(size),
        columns[None, None, :].expand(size),
    )
    return torch.stack([axis.reshape(-1, 2) for axis in axes]).unsqueeze(0)


def audio_positions(grid: AudioGrid) -> Tensor:
    """Bounds [start, end) of every audio token in seconds: (1, 1, T, 2) fp32."""
    columns = _causal_bounds(grid.frames, grid.time_factor)
    return (columns * grid.hop_length / grid.sample_rate)[None, None]


def _bounds(num_latents: int, factor: int) -> Tensor:
    """[start, end) of each latent in units before compression: (num_latents, 2) fp32."""
    edges = torch.arange(num_latents + 1, dtype=torch.float32) * factor
    return torch.stack([edges[:-1], edges[1:]], dim=-1)


def _causal_bounds(num_latents: int, factor: int) -> Tensor:
    """As `_bounds`, on an axis whose first latent covers a single unit: [0, 1), [1, 1 + factor), ..."""
    return (_bounds(num_latents, factor) + 1 - factor).clamp(min=0)
