"""The memory model of decoding, and tilings chosen by it."""

import math

import pytest
import torch
from test_video_vae import LTX2, LTX23

from ltxgen.models.video_vae import (
    DecodeCost,
    EncodeCost,
    Tiling,
    VideoDecoder,
    VideoEncoder,
    VideoVAEConfig,
    choice,
    decoder_for,
    fit_tiling,
    list_tiles,
)

CONFIG = VideoVAEConfig.from_metadata(LTX23)
COST = DecodeCost(CONFIG, copies=3)
SIZE = (16, 32, 48)  # 1536x1024, 121 frames


def test_the_widest_activation_is_the_one_before_the_last_convolution():
    # 121 frames of 256x384 patches, 128 channels of 2 bytes.
    assert COST.activation_bytes(SIZE) == 3 * 121 * 256 * 384 * 128 * 2
    # LTX-2 doubles everything at once: the widest is 121 frames of as many patches as well.
    assert DecodeCost(VideoVAEConfig.from_metadata(LTX2), 3).activation_bytes(SIZE) == 3 * 121 * 256 * 384 * 128 * 2


def test_the_model_follows_the_decoder():
    """The values of the largest activation, counted in a run."""
    metadata = {**LTX23, "latent_channels": 4, "encoder_base_channels": 4, "decoder_base_channels": 4}
    config = VideoVAEConfig.from_metadata(metadata)
    with torch.device("meta"):
        decoder = VideoDecoder(config)
        sizes = []
        for block in (decoder.conv_in, *decoder.up_blocks):
            block.register_forward_hook(lambda module, inputs, output: sizes.append(output.numel()))
        decoder(torch.empty(1, 4, 3, 2, 5))
    assert DecodeCost(config, copies=1, itemsize=1).activation_bytes((3, 2, 5)) == max(sizes)


def test_the_model_of_encoding_follows_the_encoder():
    config = VideoVAEConfig.from_metadata({**LTX23, "latent_channels": 4, "encoder_base_channels": 4})
    with torch.device("meta"):
        encoder = VideoEncoder(config)
        sizes = []
        for block in (encoder.conv_in, *encoder.down_blocks):
            block.register_forward_hook(lambda module, inputs, output: sizes.append(output.numel()))
        encoder(torch.empty(1, 3, 17, 64, 160))
    video = 3 * 17 * 64 * 160
    assert EncodeCost(config, copies=1, itemsize=1).peak_bytes((3, 2, 5), None) == max(sizes) + video


def test_large_activations_take_more_copies():
    cost = EncodeCost(CONFIG, copies=3, more_copies=1)
    frame = 384 * 256 * 2  # values of 128 channels, at 2 bytes
    for latents, copies in ((10, 3), (11, 3), (12, 4)):  # 73, 81 and 89 frames: 2^31 bytes are 85
        frames = 8 * (latents - 1) + 1
        video = 2 * 3 * frames * 1024 * 1536
        assert cost.peak_bytes((latents, 32, 48), None) == copies * 128 * frame * frames + video


@pytest.mark.parametrize(("tiling", "gigabytes"), [(None, 13.76), (Tiling(1024, 64, None, 0), 7.15)])
def test_the_fused_encoder_takes_what_was_measured_on_an_h100(tiling, gigabytes, monkeypatch):
    monkeypatch.setattr(choice, "why_not_fused", lambda device, dtype: None)
    cost = choice.encode_cost(CONFIG, torch.device("cuda"), torch.bfloat16)
    assert cost.peak_bytes(SIZE, tiling) == pytest.approx(gigabytes * 1e9, rel=0.02)


def test_encoding_fits_in_square_tiles_that_share_enough():
    cost = EncodeCost(CONFIG, copies=3)
    tiling = fit_tiling(cost, SIZE, 2 * 10**9)
    assert cost.peak_bytes(SIZE, tiling) <= 2 * 10**9 < cost.peak_bytes(SIZE, None)
    tiling.check_for_encoding()
    with pytest.raises(ValueError, match="encoding needs at least"):
        fit_tiling(cost, SIZE, 1000)


@pytest.mark.parametrize(("tiling", "gigabytes"), [(None, 21.42), (Tiling(768, 64, 80, 24), 4.85)])
def test_plain_layers_take_what_was_measured_on_an_h200(tiling, gigabytes):
    cost = decoder_for(meta_decoder(), torch.zeros(1, 128, *SIZE, dtype=torch.bfloat16, device="meta"), "plain")[1]
    assert cost.peak_bytes(SIZE, tiling) == pytest.approx(gigabytes * 1e9, rel=0.02)


def test_one_piece_where_it_fits():
    assert fit_tiling(COST, SIZE, COST.peak_bytes(SIZE, None)) is None
    assert fit_tiling(COST, SIZE, COST.peak_bytes(SIZE, None) - 1) is not None


def decoded_latents(tiling):
    """Over all tiles: how long it takes."""
    spans = [(tile.time, tile.height, tile.width) for tile in list_tiles(SIZE, tiling)]
    return sum(math.prod(span.stop - span.start for span in axes) for axes in spans)


@pytest.mark.parametrize("gigabytes", [2, 4, 8])
def test_no_tiling_that_fits_decodes_less_that_fit(gigabytes):
    free = gigabytes * 10**9
    tiling = fit_tiling(COST, SIZE, free)
    assert tiling is not None
    assert COST.peak_bytes(SIZE, tiling) <= free
    assert tiling.spatial_overlap_px in (0, 64)
    assert tiling.temporal_overlap_frames in (0, 24)
    latents = decoded_latents(tiling)
    for pixels in (None, *range(96, 1536, 32)):
        for frames in (None, *range(32, 128, 8)):
            other = Tiling(pixels, 64 if pixels else 0, frames, 24 if frames else 0)
            if decoded_latents(other) < latents:
                assert COST.peak_bytes(SIZE, other) > free, other


def test_less_memory_takes_more_time():
    work = [decoded_latents(fit_tiling(COST, SIZE, free * 10**9)) for free in (12, 4, 3, 2)]
    assert work == sorted(set(work))
    assert work[0] == math.prod(SIZE)


def test_too_little_memory_is_refused_with_what_would_do():
    with pytest.raises(ValueError, match=r"at least 1\.\d\d GiB in the smallest tiles and 0\.01 GiB are free"):
        fit_tiling(COST, SIZE, 10**7)


def meta_decoder():
    with torch.device("meta"):
        return VideoDecoder(CONFIG)


def test_fused_kernels_are_refused_with_the_reason():
    decoder = meta_decoder()
    latents = torch.zeros(1, 128, 1, 1, 1)
    with pytest.raises(ValueError, match="fused kernels can't decode here: they need an NVIDIA GPU, and this is cpu"):
        decoder_for(decoder, latents, "fused")
    assert decoder_for(decoder, latents, "auto")[0] is decoder
    assert decoder_for(decoder, latents, "plain")[0] is decoder
