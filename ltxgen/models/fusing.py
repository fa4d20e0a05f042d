"""Where our own fused kernels run, those of the transformer and of the video decoder."""

from __future__ import annotations

import importlib.util

import torch


def why_not_fused(device: torch.device, dtype: torch.dtype) -> str | None:
    """What the fused kernels lack here, as it stands behind "they" or "fused ones"; None: nothing."""
    if device.type != "cuda" or torch.version.hip is not None:
        return f"need an NVIDIA GPU, and this is {device if device.type != 'cuda' else 'one of AMD'}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"are for 16-bit weights, and these are {str(dtype).removeprefix('torch.')}"
    if importlib.util.find_spec("triton") is None:
        return "need the package triton, which comes with torch's CUDA builds"
    return None
