"""Which way the video VAE runs: its plain layers, or the fused kernels for GPUs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ltxgen.models.fusing import why_not_fused
from ltxgen.models.video_vae.budget import DecodeCost, EncodeCost
from ltxgen.models.video_vae.config import VideoVAEConfig
from ltxgen.models.video_vae.decoder import VideoDecoder
from ltxgen.models.video_vae.encoder import VideoEncoder
from ltxgen.models.video_vae.epilogue import Epilogue
from ltxgen.models.video_vae.fused import FusedDecoder, FusedEncoder
from ltxgen.models.video_vae.tiled import Decoder, Encoder

Kernels = Literal["plain", "fused", "auto"]

# Measured at 1536x1024x121 on an H200 (21.4 GB): the plain layers need copies that cuDNN reorders beside their own.
# Counted: the fused ones have what a convolution reads, what it writes, and the trunk of the residual blocks.
_COPIES = {"plain": 7.05, "fused": 3.1}
# On an H100 the fused encoder took 7.15 GB with activations of 2.0 GB, which is 3.1, and 13.8 with those of 3.0: 4.15.
_MORE_COPIES = {"plain": 0.0, "fused": 1.05}


def decoder_for(decoder: VideoDecoder, latents: Tensor, kernels: Kernels) -> tuple[Decoder, DecodeCost]:
    """What decodes `latents`, and what that costs; `auto` takes the fused kernels where they run.

    Raises ValueError saying what is missing where `fused` is asked for and can't run.
    """
    way = _way(latents.device, latents.dtype, kernels, "decode")
    decodes = FusedDecoder(decoder, _triton_epilogue()) if way == "fused" else decoder
    return decodes, _cost(decoder.config, way, latents.dtype)


def encoder_for(encoder: VideoEncoder, kernels: Kernels = "auto") -> tuple[Encoder, EncodeCost]:
    """What encodes as `encoder`, where its weights are, and what that costs; otherwise as `decoder_for`."""
    weight = next(encoder.parameters())
    way = _way(weight.device, weight.dtype, kernels, "encode")
    encodes = FusedEncoder(encoder, _triton_epilogue()) if way == "fused" else encoder
    return encodes, _encode_cost(encoder.config, way, weight.dtype)


def encode_cost(
    config: VideoVAEConfig, device: torch.device, dtype: torch.dtype, kernels: Kernels = "auto"
) -> EncodeCost:
    """What the choice of `encoder_for` costs, before there is an encoder."""
    return _encode_cost(config, _way(device, dtype, kernels), dtype)


def decode_cost(config: VideoVAEConfig, device: torch.device, dtype: torch.dtype, kernels: Kernels) -> DecodeCost:
    """What decoding costs the way that `decoder_for` takes."""
    return _cost(config, _way(device, dtype, kernels), dtype)


def _way(device: torch.device, dtype: torch.dtype, kernels: Kernels, what: str = "") -> Literal["plain", "fused"]:
    """To do `what`, if that is to be done now: then asking for what can't be is an error."""
    obstacle = why_not_fused(device, dtype)
    if what and kernels == "fused" and obstacle is not None:
        raise ValueError(f"fused kernels can't {what} here: they {obstacle}")
    return "plain" if kernels == "plain" or obstacle is not None else "fused"


def _cost(config: VideoVAEConfig, way: str, dtype: torch.dtype) -> DecodeCost:
    return DecodeCost(config, _COPIES[way], dtype.itemsize)


def _encode_cost(config: VideoVAEConfig, way: str, dtype: torch.dtype) -> EncodeCost:
    return EncodeCost(config, _COPIES[way], _MORE_COPIES[way], dtype.itemsize)


def _triton_epilogue() -> Epilogue:
    # Here, because Triton comes with torch's CUDA builds only.
    from ltxgen.models.video_vae.kernels import triton_epilogue

    return triton_epilogue
