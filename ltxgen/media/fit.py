"""Frames of any size made to fit the size of a video, in the values that an encoder takes.

F frames, H height, W width.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

_FRAMES_AT_ONCE = 8  # fp32 copies are made of so many frames and not of the whole video

Fit = Literal["cover", "contain", "stretch"]


def to_encoder(
    frames: Tensor, height: int, width: int, fit: Fit = "cover", dtype: torch.dtype = torch.float32
) -> Tensor:
    """(F, H, W, C) uint8 -> (1, C, F, height, width) in [-1, 1], computed in fp32.

    `cover` scales until nothing is empty and cuts the sides, `contain` until everything is in and leaves the rest
    black, both centred; `stretch` ignores the aspect. Bilinear without antialiasing. `cover` is the official
    `resize_and_center_crop` (ltx_pipelines/utils/media_io.py).
    """

    def fitted(some: Tensor) -> Tensor:
        scaled = _scaled(some.permute(0, 3, 1, 2).float(), height, width, fit)
        return (_centred(scaled, height, width) / 127.5 - 1).transpose(0, 1)[None].to(dtype)

    return torch.cat([fitted(some) for some in frames.split(_FRAMES_AT_ONCE)], dim=2)


def _scaled(frames: Tensor, height: int, width: int, fit: Fit) -> Tensor:
    H, W = frames.shape[2:]
    match fit:
        case "cover":
            scale = max(height / H, width / W)
            size = math.ceil(H * scale), math.ceil(W * scale)
        case "contain":
            scale = min(height / H, width / W)
            size = min(height, max(1, round(H * scale))), min(width, max(1, round(W * scale)))
        case "stretch":
            size = height, width
    return F.interpolate(frames, size, mode="bilinear", align_corners=False)


def _centred(frames: Tensor, height: int, width: int) -> Tensor:
    """Cut to `height` x `width`, or padded with black."""
    H, W = frames.shape[2:]
    top, left = max(0, H - height) // 2, max(0, W - width) // 2
    cut = frames[:, :, top : top + height, left : left + width]
    above, before = (height - cut.shape[2]) // 2, (width - cut.shape[3]) // 2
    return F.pad(cut, (before, width - cut.shape[3] - before, above, height - cut.shape[2] - above))
