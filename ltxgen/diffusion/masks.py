"""Masks over pixels, reduced to tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ltxgen.diffusion.grids import VideoGrid


def mask_of_tokens(mask: Tensor, grid: VideoGrid) -> Tensor:
    """The means of `mask` (F, H, W) over the frames and pixels of each token of `grid`: (T,).

    F is the grid's `num_frames`, or 1 for all of them; H and W are any. The first latent frame covers one frame, as in
    the official IC-LoRA pipeline (ltx_pipelines/ic_lora.py).
    """
    cells = F.adaptive_avg_pool2d(mask[:, None], (grid.height, grid.width))[:, 0].expand(grid.num_frames, -1, -1)
    rest = cells[1:].unflatten(0, (grid.frames - 1, grid.time_factor)).mean(dim=1)
    return torch.cat([cells[:1], rest]).flatten()
