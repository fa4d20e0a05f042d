"""Which way the video decoder runs: its plain layers, or the fused kernels for GPUs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ltxgen.models.fusing import why_not_fused
from ltxgen.models.video_vae.budget import DecodeCost
from ltxgen.models.video_vae.config import VideoVAEConfig
from ltxgen.models.video_vae.decoder import VideoDecoder
from ltxgen.models.video_vae.fused import FusedDecoder
from ltxgen.models.video_vae.tiled import Decoder

Kernels = Literal["plain", "fused", "auto"]

# Measured at 1536x1024x121 on an H200 (21.4 GB): the plain layers need copies that cuDNN reorders beside their own.
# Counted: the fused decoder has what a convolution reads, what it writes, and the trunk of the residual blocks.
_COPIES = {"plain": 7.05, "fused": 3.1}


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
