"""Which way the video decoder runs: its plain layers, or the fused kernels for GPUs."""

from __future__ import annotations

import importlib.util
from typing import Literal

import torch
from torch import Tensor

from ltxgen.models.video_vae.budget import DecodeCost
from ltxgen.models.video_vae.config import VideoVAEConfig
from ltxgen.models.video_vae.decoder import VideoDecoder
from ltxgen.models.video_vae.fused import FusedDecoder
from ltxgen.models.video_vae.tiled import Decoder

Kernels = Literal["plain", "fused", "auto"]

# Measured at 1536x1024x121 on an H200 (21.4 GB): the plain layers need copies that cuDNN reorders beside their own.
# Counted: the fused decoder has what a convolution reads, what it writes, and the trunk of the residual blocks.
_COPIES = {"plain": 7.05, "fused": 3.1}


def why_not_fused(device: torch.device, dtype: torch.dtype) -> str | None:
    """What the fused kernels lack here, as it stands behind "they" or "fused ones"; None: nothing."""
    if device.type != "cuda" or torch.version.hip is not None:
        return f"need an NVIDIA GPU, and this is {device if device.type != 'cuda' else 'one of AMD'}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"are for 16-bit weights, and these are {str(dtype).removeprefix('torch.')}"
    if importlib.util.find_spec("triton") is None:
        return "need the package triton, which comes with torch's CUDA builds"
    return None


def decoder_for(decoder: VideoDecoder, latents: Tensor, kernels: Kernels) -> tuple[Decoder, DecodeCost]:
    """What decodes `latents`, and what that costs; `auto` takes the fused kernels where they run.

    Raises ValueError saying what is missing where `fused` is asked for and can't run.
    """
    obstacle = why_not_fused(latents.device, latents.dtype)
    if kernels == "fused" and obstacle is not None:
        raise ValueError(f"fused kernels can't decode here: they {obstacle}")
    way = _way(latents.device, latents.dtype, kernels)
    return (_fused(decoder) if way == "fused" else decoder), _cost(decoder.config, way, latents.dtype)


def decode_cost(config: VideoVAEConfig, device: torch.device, dtype: torch.dtype, kernels: Kernels) -> DecodeCost:
    """What decoding costs the way that `decoder_for` takes."""
    return _cost(config, _way(device, dtype, kernels), dtype)


def _way(device: torch.device, dtype: torch.dtype, kernels: Kernels) -> Literal["plain", "fused"]:
    return "plain" if kernels == "plain" or why_not_fused(device, dtype) is not None else "fused"


def _cost(config: VideoVAEConfig, way: str, dtype: torch.dtype) -> DecodeCost:
    return DecodeCost(config, _COPIES[way], dtype.itemsize)


def _fused(decoder: VideoDecoder) -> Decoder:
    # Here, because Triton comes with torch's CUDA builds only.
    from ltxgen.models.video_vae.kernels import triton_epilogue

    return FusedDecoder(decoder, triton_epilogue)
