"""The video VAE against diffusers' independent implementation, on fresh weights under the official names."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLLTX2Video

from ltxgen.models.video_vae import PerChannelStatistics, VideoDecoder, VideoEncoder, VideoVAEConfig

KEYS = Path(__file__).with_name("ltx23-keys.json.gz")
WIDTH = 4

LTX23 = {
    "_class_name": "CausalVideoAutoencoder",
    "dims": 3,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 128,
    "encoder_blocks": [
        ["res_x", {"num_layers": 4}],
        ["compress_space_res", {"multiplier": 2}],
        ["res_x", {"num_layers": 6}],
        ["compress_time_res", {"multiplier": 2}],
        ["res_x", {"num_layers": 4}],
        ["compress_all_res", {"multiplier": 2}],
        ["res_x", {"num_layers": 2}],
        ["compress_all_res", {"multiplier": 1}],
        ["res_x", {"num_layers": 2}],
    ],
    "decoder_blocks": [
        ["res_x", {"num_layers": 4}],
        ["compress_space", {"multiplier": 2}],
        ["res_x", {"num_layers": 6}],
        ["compress_time", {"multiplier": 2}],
        ["res_x", {"num_layers": 4}],
        ["compress_all", {"multiplier": 1}],
        ["res_x", {"num_layers": 2}],
        ["compress_all", {"multiplier": 2}],
        ["res_x", {"num_layers": 2}],
    ],
    "scaling_factor": 1.0,
    "norm_layer": "pixel_norm",
    "patch_size": 4,
    "latent_log_var": "uniform",
    "use_quant_conv": False,
    "causal_decoder": False,
    "timestep_conditioning": False,
    "normalize_latent_channels": False,
    "encoder_base_channels": 128,
    "decoder_base_channels": 128,
    "spatial_padding_mode": "zeros",
}
LTX2_RES = ["res_x", {"num_layers": 5, "inject_noise": False}]
LTX2_UP = ["compress_all", {"residual": True, "multiplier": 2}]
# Without `spatial_padding_mode`: zeros in the encoder, reflect in the decoder.
LTX2 = {
    **{key: value for key, value in LTX23.items() if key != "spatial_padding_mode"},
    "encoder_blocks": [
        ["res_x", {"num_layers": 4}],
        ["compress_space_res", {"multiplier": 2}],
        ["res_x", {"num_layers": 6}],
        ["compress_time_res", {"multiplier": 2}],
        ["res_x", {"num_layers": 6}],
        ["compress_all_res", {"multiplier": 2}],
        ["res_x", {"num_layers": 2}],
        ["compress_all_res", {"multiplier": 2}],
        ["res_x", {"num_layers": 2}],
    ],
    "decoder_blocks": [LTX2_RES, LTX2_UP, LTX2_RES, LTX2_UP, LTX2_RES, LTX2_UP, LTX2_RES],
}
# The same models in diffusers' words, tiny.
LTX23_DIFFUSERS = {
    "block_out_channels": (2 * WIDTH, 4 * WIDTH, 8 * WIDTH, 8 * WIDTH),
    "layers_per_block": (4, 6, 4, 2, 2),
    "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
    "decoder_block_out_channels": (2 * WIDTH, 4 * WIDTH, 4 * WIDTH, 8 * WIDTH),
    "decoder_layers_per_block": (4, 6, 4, 2, 2),
    "decoder_spatio_temporal_scaling": (True,) * 4,
    "decoder_inject_noise": (False,) * 5,
    "upsample_type": ("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
    "upsample_residual": (False,) * 4,
    "upsample_factor": (2, 1, 2, 2),
    "decoder_spatial_padding_mode": "zeros",
}
LTX2_DIFFUSERS = {
    "block_out_channels": (2 * WIDTH, 4 * WIDTH, 8 * WIDTH, 16 * WIDTH),
    "layers_per_block": (4, 6, 6, 2, 2),
    "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
    "decoder_block_out_channels": (2 * WIDTH, 4 * WIDTH, 8 * WIDTH),
    "decoder_layers_per_block": (5, 5, 5, 5),
    "decoder_spatio_temporal_scaling": (True,) * 3,
    "decoder_inject_noise": (False,) * 4,
    "upsample_type": ("spatiotemporal",) * 3,
    "upsample_residual": (True,) * 3,
    "upsample_factor": (2, 2, 2),
    "decoder_spatial_padding_mode": "reflect",
}
VARIANTS = {"2.3": (LTX23, LTX23_DIFFUSERS), "2": (LTX2, LTX2_DIFFUSERS)}


def tiny(metadata):
    return {**metadata, "latent_channels": WIDTH, "encoder_base_channels": WIDTH, "decoder_base_channels": WIDTH}


def built(cls, config):
    """A model made on the meta device and filled with fresh weights, as the loader does it."""
    with torch.device("meta"):
        model = cls(config)
    generator = torch.Generator().manual_seed(3)
    state = {}
    for name, tensor in model.state_dict().items():
        value = torch.randn(tensor.shape, generator=generator)
        if name.endswith("std-of-means"):
            value = value.abs() + 0.5
        elif tensor.ndim > 1:
            value = value * tensor[0].numel() ** -0.5
        state[name] = value
    model.load_state_dict(state, assign=True)
    return model.eval()


def diffusers_stage(half, block, num_blocks):
    """diffusers hangs the stages of the lowest resolution in `mid_block` and pairs the others with their resampler."""
    if half == "encoder":
        return "mid_block" if block == num_blocks - 1 else f"down_blocks.{block // 2}"
    return "mid_block" if block == 0 else f"up_blocks.{(block - 1) // 2}"


def to_diffusers(encoder, decoder):
    """Official names to diffusers' names."""
    state = {}
    for half, model, blocks in (("encoder", encoder, "down_blocks"), ("decoder", decoder, "up_blocks")):
        for name, tensor in model.state_dict().items():
            parts = name.split(".")
            if parts[0] == "per_channel_statistics":
                state["latents_std" if parts[1] == "std-of-means" else "latents_mean"] = tensor
                continue
            if parts[0] == blocks:
                resampler = "downsamplers" if half == "encoder" else "upsamplers"
                inside = parts[2:]
                inside = ["resnets", *inside[1:]] if inside[0] == "res_blocks" else [resampler, "0", *inside]
                parts = [diffusers_stage(half, int(parts[1]), len(getattr(model, blocks))), *inside]
            state[".".join((half, *parts))] = tensor
    return state


@pytest.fixture(params=VARIANTS, scope="module")
def pair(request):
    metadata, arguments = VARIANTS[request.param]
    config = VideoVAEConfig.from_metadata(tiny(metadata))
    encoder, decoder = built(VideoEncoder, config), built(VideoDecoder, config)
    # diffusers builds its first encoder convolution as wide as the first stage.
    theirs = AutoencoderKLLTX2Video(
        latent_channels=WIDTH,
        **{**arguments, "block_out_channels": (WIDTH, *arguments["block_out_channels"])[:-1] + ()}
        if False
        else {"latent_channels": WIDTH, **arguments},
        encoder_causal=True,
        decoder_causal=False,
        timestep_conditioning=False,
    )
    theirs.load_state_dict(to_diffusers(encoder, decoder))
    return encoder, decoder, theirs.eval()
