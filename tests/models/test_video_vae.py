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
    "upsample_factor": (2, 2, 1, 2),
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
    # Both halves read the same statistics of the file.
    decoder.per_channel_statistics.load_state_dict(encoder.per_channel_statistics.state_dict())
    theirs = AutoencoderKLLTX2Video(
        latent_channels=WIDTH, encoder_causal=True, decoder_causal=False, timestep_conditioning=False, **arguments
    )
    theirs.load_state_dict(to_diffusers(encoder, decoder))
    return encoder, decoder, theirs.eval()


def per_channel(values):
    return values.view(1, -1, 1, 1, 1)


def relative_l2(actual, expected):
    assert actual.shape == expected.shape
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("frames", [1, 17])
@torch.inference_mode()
def test_encoder_agrees_with_diffusers(pair, frames):
    encoder, _, theirs = pair
    video = torch.rand(2, 3, frames, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean = theirs.encode(video).latent_dist.mean
    expected = (mean - per_channel(theirs.latents_mean)) / per_channel(theirs.latents_std)
    assert expected.shape == (2, WIDTH, (frames - 1) // 8 + 1, 2, 3)
    assert relative_l2(encoder(video), expected) <= 1e-5


@pytest.mark.parametrize("frames", [1, 3])
@torch.inference_mode()
def test_decoder_agrees_with_diffusers(pair, frames):
    _, decoder, theirs = pair
    latents = torch.randn(2, WIDTH, frames, 2, 3, generator=torch.Generator().manual_seed(1))
    expected = theirs.decode(latents * per_channel(theirs.latents_std) + per_channel(theirs.latents_mean)).sample
    assert expected.shape == (2, 3, 8 * (frames - 1) + 1, 64, 96)
    assert relative_l2(decoder(latents), expected) <= 1e-5


@torch.inference_mode()
def test_inputs_are_left_as_they_were(pair):
    encoder, decoder, _ = pair
    video, latents = torch.rand(1, 3, 9, 32, 32), torch.randn(1, WIDTH, 2, 2, 2)
    video_before, latents_before = video.clone(), latents.clone()
    encoder(video)
    decoder(latents)
    assert torch.equal(video, video_before)
    assert torch.equal(latents, latents_before)


@torch.inference_mode()
def test_bf16_stays_near_fp32(pair):
    _, decoder, _ = pair
    latents = torch.randn(1, WIDTH, 2, 2, 2, generator=torch.Generator().manual_seed(2)).bfloat16()
    low = VideoDecoder(decoder.config)
    low.load_state_dict(decoder.state_dict())
    low.bfloat16()
    high = VideoDecoder(decoder.config)
    high.load_state_dict(low.state_dict())
    decoded = low(latents)
    assert decoded.dtype == torch.bfloat16
    assert relative_l2(decoded.float(), high(latents.float())) < 0.02


@torch.inference_mode()
def test_statistics_alone():
    statistics = built(PerChannelStatistics, 5)
    assert list(statistics.state_dict()) == ["std-of-means", "mean-of-means"]
    latents = torch.randn(1, 5, 2, 3, 4)
    std, mean = (per_channel(statistics.state_dict()[name]) for name in ("std-of-means", "mean-of-means"))
    torch.testing.assert_close(statistics.normalize(latents), (latents - mean) / std)
    torch.testing.assert_close(statistics.denormalize(statistics.normalize(latents)), latents)


def test_keys_and_shapes_are_the_official_ones():
    official = json.loads(gzip.decompress(KEYS.read_bytes()))["video_vae"]
    config = VideoVAEConfig.from_metadata(LTX23)
    with torch.device("meta"):
        halves = {"vae.encoder.": VideoEncoder(config), "vae.decoder.": VideoDecoder(config)}
    built_here = {}
    for prefix, half in halves.items():
        for name, tensor in half.state_dict().items():
            shared = name.startswith("per_channel_statistics.")
            built_here[("vae." if shared else prefix) + name] = list(tensor.shape)
    assert built_here == {name: shape for name, (shape, _) in official.items()}


def test_ltx2_widths():
    config = VideoVAEConfig.from_metadata(LTX2)
    with torch.device("meta"):
        encoder, decoder = VideoEncoder(config), VideoDecoder(config)
    assert tuple(encoder.conv_out.conv.weight.shape[:2]) == (129, 2048)
    assert tuple(decoder.conv_in.conv.weight.shape[:2]) == (1024, 128)
    assert (config.encoder_padding, config.decoder_padding) == ("zeros", "reflect")


@pytest.mark.parametrize("metadata", [LTX23, LTX2], ids=["2.3", "2"])
def test_compression_comes_from_the_blocks(metadata):
    config = VideoVAEConfig.from_metadata(metadata)
    assert (config.time_compression, config.space_compression) == (8, 32)
    smaller = {
        **LTX23,
        "patch_size": 2,
        "encoder_blocks": [["compress_time_res", {}]],
        "decoder_blocks": [["compress_time", {}]],
    }
    config = VideoVAEConfig.from_metadata(smaller)
    assert (config.time_compression, config.space_compression) == (2, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timestep_conditioning": True}, r"vae\.timestep_conditioning = True: must be False"),
        ({"norm_layer": "group_norm"}, r"vae\.norm_layer = 'group_norm': must be 'pixel_norm'"),
        ({"spatial_padding_mode": "circular"}, r"vae\.spatial_padding_mode = 'circular'.*'zeros' or 'reflect'"),
        ({"latent_log_var": "odd"}, r"vae\.latent_log_var = 'odd'"),
        ({"encoder_blocks": [["compress_all", {}]]}, r"vae\.encoder_blocks\[0\] = 'compress_all'"),
        ({"decoder_blocks": [["res_x", {"attention": 4}]]}, r"vae\.decoder_blocks\[0\]\.attention = 4"),
        ({"decoder_blocks": [["res_x", {"inject_noise": True}]]}, r"vae\.decoder_blocks\[0\]\.inject_noise = True"),
        ({"decoder_blocks": []}, r"vae\.decoder_blocks: must list the blocks"),
        ({"decoder_blocks": [["compress_time", {}]]}, r"vae\.decoder_blocks: must expand"),
    ],
)
def test_metadata_that_is_not_supported_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        VideoVAEConfig.from_metadata({**LTX23, **change})


def test_absent_timestep_conditioning_means_true_and_all_problems_are_listed():
    metadata = {key: value for key, value in LTX23.items() if key != "timestep_conditioning"}
    with pytest.raises(ValueError) as error:
        VideoVAEConfig.from_metadata({**metadata, "dims": 2})
    assert "vae.timestep_conditioning = True (the default of an absent key)" in str(error.value)
    assert "vae.dims = 2" in str(error.value)


@torch.inference_mode()
def test_video_that_does_not_come_out_even_is_refused(pair):
    encoder, _, _ = pair
    with pytest.raises(ValueError) as error:
        encoder(torch.zeros(1, 3, 12, 48, 64))
    assert "frames = 12: must be 8k + 1; the nearest are 9 and 17" in str(error.value)
    assert "height = 48: must be a multiple of 32" in str(error.value)
    assert "width" not in str(error.value)
