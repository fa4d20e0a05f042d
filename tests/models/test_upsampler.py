"""Latent upsamplers against diffusers' independent implementation, on fresh weights under the official names."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel

from ltxgen.models.upsampler import LatentUpsampler, UpsamplerConfig

KEYS = Path(__file__).with_name("ltx23-keys.json.gz")

SPATIAL_X2 = {
    "_class_name": "LatentUpsampler",
    "in_channels": 128,
    "mid_channels": 1024,
    "num_blocks_per_stage": 4,
    "dims": 3,
    "spatial_upsample": True,
    "temporal_upsample": False,
}
SPATIAL_X1_5 = {**SPATIAL_X2, "spatial_scale": 1.5, "rational_resampler": True}
TEMPORAL_X2 = {**SPATIAL_X2, "mid_channels": 512, "spatial_upsample": False, "temporal_upsample": True}
BOTH_X2 = {**SPATIAL_X2, "temporal_upsample": True}


def rational(scale):
    return {**SPATIAL_X2, "spatial_scale": scale, "rational_resampler": True}


def tiny(metadata):
    return {**metadata, "in_channels": 8, "mid_channels": 32, "num_blocks_per_stage": 2}


def built(metadata):
    with torch.device("meta"):
        model = LatentUpsampler(UpsamplerConfig.from_metadata(metadata))
    generator = torch.Generator().manual_seed(5)
    state = {}
    for name, tensor in model.state_dict().items():
        value = torch.randn(tensor.shape, generator=generator)
        state[name] = value * tensor[0].numel() ** -0.5 if tensor.ndim > 1 else value
    if "upsampler.blur_down.kernel" in state:
        # The binomial kernel that the published file holds and diffusers computes.
        row = torch.tensor([1.0, 4, 6, 4, 1])
        state["upsampler.blur_down.kernel"] = (torch.outer(row, row) / 256)[None, None]
    model.load_state_dict(state, assign=True)
    return model.eval()


@pytest.mark.parametrize(
    ("metadata", "shape"),
    [
        (SPATIAL_X2, (3, 8, 16)),
        (SPATIAL_X1_5, (3, 6, 12)),
        (rational(2.0), (3, 8, 16)),
        (rational(4.0), (3, 16, 32)),
        (rational(0.75), (3, 3, 6)),
        (TEMPORAL_X2, (5, 4, 8)),
        (BOTH_X2, (5, 8, 16)),
    ],
    ids=["x2", "x1.5", "2/1", "4/1", "3/4", "temporal", "both"],
)
@torch.inference_mode()
def test_agrees_with_diffusers(metadata, shape):
    ours = built(tiny(metadata))
    theirs = LTX2LatentUpsamplerModel(
        in_channels=8,
        mid_channels=32,
        num_blocks_per_stage=2,
        dims=3,
        spatial_upsample=metadata["spatial_upsample"],
        temporal_upsample=metadata["temporal_upsample"],
        rational_spatial_scale=metadata.get("spatial_scale", 2.0),
        use_rational_resampler=metadata.get("rational_resampler", False),
    ).eval()
    theirs.load_state_dict(ours.state_dict())  # diffusers kept the official names
    latents = torch.randn(2, 8, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    before = latents.clone()
    upsampled, expected = ours(latents), theirs(latents)
    assert upsampled.shape == expected.shape == (2, 8, *shape)
    assert ours.output_shape(3, 4, 8) == shape
    assert ((upsampled - expected).norm() / expected.norm()).item() <= 1e-5
    assert torch.equal(latents, before)


@pytest.mark.parametrize(
    ("component", "metadata"),
    [
        ("spatial_upscaler_x2", SPATIAL_X2),
        ("spatial_upscaler_x1_5", SPATIAL_X1_5),
        ("temporal_upscaler_x2", TEMPORAL_X2),
    ],
)
def test_keys_and_shapes_are_the_official_ones(component, metadata):
    official = json.loads(gzip.decompress(KEYS.read_bytes()))[component]
    with torch.device("meta"):
        model = LatentUpsampler(UpsamplerConfig.from_metadata(metadata))
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == {name: shape for name, (shape, _) in official.items()}


def test_sizes_that_do_not_come_out_even_are_refused():
    config = UpsamplerConfig.from_metadata(SPATIAL_X1_5)
    assert config.output_shape(16, 16, 24) == (16, 24, 36)
    with pytest.raises(ValueError) as error:
        config.output_shape(16, 15, 23)
    assert "latent height = 15: must be a multiple of 2 for a scale of 3/2" in str(error.value)
    assert "latent width = 23" in str(error.value)
    with pytest.raises(ValueError, match="latent width = 7"):
        built(tiny(SPATIAL_X1_5))(torch.zeros(1, 8, 1, 4, 7))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dims": 2}, "dims = 2: must be 3"),
        ({"spatial_upsample": False}, "spatial_upsample = False"),
        ({"spatial_scale": 1.5}, "spatial_scale = 1.5: must be 2.0 where rational_resampler is not true"),
        ({"spatial_scale": 3.0, "rational_resampler": True}, r"spatial_scale = 3.0: must be one of 0\.75, 1\.5"),
        ({"rational_resampler": True, "temporal_upsample": True}, "rational_resampler = True: must be false"),
    ],
)
def test_metadata_that_is_not_supported_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        UpsamplerConfig.from_metadata({**SPATIAL_X2, **change})
