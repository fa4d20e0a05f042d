"""Which way the video decoder runs: its plain layers, or the fused kernels for GPUs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ltxgen.models.video_vae.budget import DecodeCost
from ltxgen.models.video_vae.config import Resample, VideoVAEConfig
from ltxgen.models.video_vae.decoder import VideoDecoder
from ltxgen.models.video_vae.tiled import Decoder

Kernels = Literal["plain", "fused", "auto"]

# A residual block holds its input, and one tensor each that a convolution reads and writes. The plain layers hold the
# result of the first convolution too, and cuDNN the two that it reorders.
_COPIES = {"plain": 6.0, "fused": 3.0}


def why_not_fused(device: torch.device, dtype: torch.dtype) -> str | None:
    """What is missing for the fused kernels, or None."""
    if device.type != "cuda" or torch.version.hip is not None:
        return f"they run on NVIDIA GPUs, not on {device}"
    if torch.cuda.get_device_capability(device) < (9, 0):
        return f"they need the copy engine of Hopper and newer GPUs, which {torch.cuda.get_device_name(device)} lacks"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"they are for 16-bit weights, not for {dtype}"
    if importlib.util.find_spec("triton") is None:
        return "they need the package triton, which comes with torch's CUDA builds"
    return None


def why_not_fused_model(config: VideoVAEConfig) -> str | None:
    """What of this decoder the fused kernels don't compute, or None."""
    if config.decoder_padding != "zeros":
        return f"they pad pixels by zeros and this decoder by '{config.decoder_padding}'"
    if any(isinstance(block, Resample) and block.residual for block in config.decoder_blocks):
        return "they have no residual upsampling, which this decoder has"
    return None


def decoder_for(decoder: VideoDecoder, latents: Tensor, kernels: Kernels) -> tuple[Decoder, DecodeCost]:
    """What decodes `latents`, and what that costs; `auto` takes the fused kernels where they run.

    Raises ValueError saying what is missing where `fused` is asked for and can't run.
    """
    obstacle = why_not_fused(latents.device, latents.dtype) or why_not_fused_model(decoder.config)
    if kernels == "fused" and obstacle is not None:
        raise ValueError(f"the fused kernels can't decode here: {obstacle}")
    way = "plain" if kernels == "plain" or obstacle is not None else "fused"
    make: Callable[[VideoDecoder], Decoder] = _fused if way == "fused" else lambda plain: plain
    return make(decoder), DecodeCost(decoder.config, _COPIES[way], latents.element_size())


def _fused(decoder: VideoDecoder) -> Decoder:
    # Here, because Triton comes with torch's CUDA builds only.
    from ltxgen.models.video_vae.fused import FusedDecoder

    return FusedDecoder(decoder)
