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
    seconds = _causal_bounds(grid.frames, grid.time_factor) / float(fps)
    rows = _bounds(grid.height, grid.spatial_factor)
    columns = _bounds(grid.width, grid.spatial_factor)
    size = (grid.frames, grid.height, grid.width, 2)
    axes = (
        seconds[:, None, None].expand(size),
        rows[None, :, None].expand(size),
        columns[None, None, :].expand(size),
    )
    return torch.stack([axis.reshape(-1, 2) for axis in axes]).unsqueeze(0).to(dtype)


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
