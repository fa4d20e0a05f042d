"""Tiled decoding and encoding: where tiles lie, that ramps add to 1, that chunks are the blended whole."""

import itertools
import math

import pytest
import torch

from ltxgen.models.video_vae import (
    Tiling,
    VideoDecoder,
    VideoEncoder,
    VideoVAEConfig,
    blend_tiles,
    decode_tiled,
    encode_tiled,
    list_tiles,
)

LAUNCH = Tiling(spatial_tile_px=512, spatial_overlap_px=64, temporal_tile_frames=64, temporal_overlap_frames=24)
WIDTH = 4
METADATA = {
    "latent_channels": WIDTH,
    "encoder_base_channels": WIDTH,
    "decoder_base_channels": WIDTH,
    "timestep_conditioning": False,
    "spatial_padding_mode": "zeros",
    "encoder_blocks": [
        ["compress_space_res", {}],
        ["compress_time_res", {}],
        ["compress_all_res", {}],
        ["res_x", {"num_layers": 1}],
        ["compress_all_res", {"multiplier": 1}],
    ],
    "decoder_blocks": [
        ["compress_space", {"multiplier": 2}],
        ["compress_time", {"multiplier": 2}],
        ["compress_all", {"multiplier": 1}],
        ["res_x", {"num_layers": 1}],
        ["compress_all", {"multiplier": 2}],
    ],
}


def filled(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        value = torch.randn(tensor.shape, generator=generator)
        tensor.copy_(value.abs() + 0.5 if name.endswith("std-of-means") else value * tensor[0].numel() ** -0.5)
    return model.eval()


@pytest.fixture(scope="module")
def decoder():
    return filled(VideoDecoder(VideoVAEConfig.from_metadata(METADATA)).requires_grad_(False))


@pytest.fixture(scope="module")
def encoder():
    return filled(VideoEncoder(VideoVAEConfig.from_metadata(METADATA)).requires_grad_(False))


def spans(tiles, axis):
    found = {(getattr(tile, axis).start, getattr(tile, axis).stop) for tile in tiles}
    return sorted(found)


def test_tiles_of_1024x1536x121():
    tiles = list_tiles((16, 32, 48), LAUNCH)
    assert len(tiles) == 3 * 4 * 4
    assert spans(tiles, "height") == [(0, 11), (9, 20), (18, 29), (27, 32)]
    assert spans(tiles, "width") == [(0, 16), (14, 30), (28, 44), (42, 48)]
    assert spans(tiles, "time") == [(0, 8), (4, 13), (9, 16)]
    frames = dict.fromkeys((tile.time.frames.start, tile.time.frames.stop) for tile in tiles)
    assert list(frames) == [(0, 57), (32, 97), (72, 121)]  # in the order of time, so that chunks can stream


def test_newer_official_tiling_of_1024x1536x121():
    tiles = list_tiles((16, 32, 48), Tiling(768, 64, 80, 24))
    assert spans(tiles, "height") == [(0, 16), (14, 30), (28, 32)]
    assert spans(tiles, "width") == [(0, 24), (22, 46), (44, 48)]
    assert spans(tiles, "time") == [(0, 10), (6, 16)]


def test_each_axis_is_optional():
    size = (16, 32, 48)
    assert len(list_tiles(size, None)) == len(list_tiles(size, Tiling())) == 1
    assert list_tiles(size, None)[0].video == (slice(None), slice(None), slice(0, 121), slice(0, 1024), slice(0, 1536))
    assert spans(list_tiles(size, Tiling(512, 64)), "time") == [(0, 16)]
    assert spans(list_tiles(size, Tiling(temporal_tile_frames=64)), "width") == [(0, 48)]


def test_encoder_tiles_are_square():
    tiles = list_tiles((16, 32, 48), LAUNCH, follow_aspect=False)
    assert spans(tiles, "height") == [(0, 16), (14, 30), (28, 32)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"spatial_tile_px": 500}, "spatial_tile_px = 500: must be a multiple of 32, at least 64"),
        ({"spatial_tile_px": 32}, "spatial_tile_px = 32"),
        ({"spatial_tile_px": 64, "spatial_overlap_px": 64}, "spatial_overlap_px = 64: must be less than spatial_tile"),
        ({"spatial_tile_px": 64, "spatial_overlap_px": 16}, "spatial_overlap_px = 16: must be a multiple of 32"),
        ({"spatial_overlap_px": 32}, "spatial_overlap_px = 32: must be 0 where spatial_tile_px is not set"),
        ({"temporal_tile_frames": 8}, "temporal_tile_frames = 8: must be a multiple of 8, at least 16"),
        ({"temporal_tile_frames": 16, "temporal_overlap_frames": 24}, "temporal_overlap_frames = 24: must be less"),
        ({"temporal_tile_frames": 16, "temporal_overlap_frames": -8}, "temporal_overlap_frames = -8"),
    ],
)
def test_fields_out_of_range_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Tiling(**fields)


def test_all_fields_out_of_range_are_named_at_once():
    with pytest.raises(ValueError, match=r"(?s)spatial_tile_px = 33.*temporal_overlap_frames = 3"):
        Tiling(spatial_tile_px=33, temporal_tile_frames=16, temporal_overlap_frames=3)


# The whole volume at once, in float64, from the description of the weights and nothing of the code under test.


def trapezoid(length, shared, where):
    """Weights along one axis of a tile that shares so many latents (before, after)."""
    before, after = shared
    weights = [1.0] * length
    if where == "time":
        rise, fall = (1 + 8 * (before - 1) if before else 0), 8 * after
        up = [i / rise for i in range(rise)]
    else:
        rise, fall = 32 * before, 32 * after
        up = [(i + 1) / (rise + 1) for i in range(rise)]
    for i, value in enumerate(up):
        weights[i] *= value
    for i in range(fall):
        weights[length - fall + i] *= (fall - i) / (fall + 1)
    return torch.tensor(weights, dtype=torch.float64)


def starts_and_stops(length, tile, overlap):
    if length <= tile:
        return [(0, length)]
    count = math.ceil((length - overlap) / (tile - overlap))
    found = [(i * (tile - overlap), i * (tile - overlap) + tile) for i in range(count)]
    found[-1] = (found[-1][0], length)
    return found


def reference_axis(length, tile, overlap, where):
    """(latent slice, pixel slice, weights) for each tile of one axis."""
    pieces = starts_and_stops(length, tile, overlap)
    result = []
    for i, (start, stop) in enumerate(pieces):
        shared = (overlap if i else 0, overlap if i < len(pieces) - 1 else 0)
        if where == "time" and i:
            start, shared = start - 1, (shared[0] + 1, shared[1])
        pixels = slice(8 * start, 8 * (stop - 1) + 1) if where == "time" else slice(32 * start, 32 * stop)
        result.append((slice(start, stop), pixels, trapezoid(pixels.stop - pixels.start, shared, where)))
    return result


def reference_axes(size, tiling):
    frames, height, width = size
    tile, overlap = tiling.spatial_tile_px // 32, tiling.spatial_overlap_px // 32
    sides = [max(overlap + 1, 2, round(tile * side / max(height, width))) for side in (height, width)]
    return (
        reference_axis(frames, tiling.temporal_tile_frames // 8, tiling.temporal_overlap_frames // 8, "time"),
        reference_axis(height, sides[0], overlap, "space"),
        reference_axis(width, sides[1], overlap, "space"),
    )


def reference_decode(decode, latents, tiling):
    frames, height, width = latents.shape[2:]
    total = torch.zeros(latents.shape[0], 3, 8 * (frames - 1) + 1, 32 * height, 32 * width, dtype=torch.float64)
    weight_sum = torch.zeros(total.shape[2:], dtype=torch.float64)
    for (t, ft, wt), (h, ph, wh), (w, pw, ww) in itertools.product(*reference_axes((frames, height, width), tiling)):
        weights = wt[:, None, None] * wh[:, None] * ww
        total[:, :, ft, ph, pw] += weights * decode(latents[:, :, t, h, w]).double()
        weight_sum[ft, ph, pw] += weights
    return total / weight_sum.clamp(min=1e-8), weight_sum


TILINGS = {
    "space and time": ((6, 3, 5), Tiling(96, 32, 24, 8)),
    "no overlap": ((5, 3, 4), Tiling(64, 0, 16, 0)),
    "more than half in space": ((4, 3, 7), Tiling(160, 96, 24, 0)),
    "more than half in time": ((9, 2, 3), Tiling(96, 0, 32, 24)),
    "all but one latent in time": ((6, 2, 2), Tiling(64, 0, 32, 24)),
}


@pytest.mark.parametrize(("size", "tiling"), TILINGS.values(), ids=TILINGS)
@torch.inference_mode()
def test_decoding_in_tiles_is_the_weighted_mean_of_the_tiles(decoder, size, tiling):
    latents = torch.randn(1, WIDTH, *size, generator=torch.Generator().manual_seed(1))
    expected, _ = reference_decode(decoder, latents, tiling)
    chunks = list(decode_tiled(decoder, latents, tiling))
    assert len(chunks) > 1
    assert all(chunk.shape[2] > 0 and chunk.dtype == latents.dtype for chunk in chunks)
    decoded = torch.cat(chunks, dim=2)
    assert decoded.shape == (1, 3, 8 * (size[0] - 1) + 1, 32 * size[1], 32 * size[2])
    assert ((decoded - expected).norm() / expected.norm()).item() <= 1e-6
    assert (decoded - decoder(latents)).abs().max() > 1e-3  # tiles do change the result


def test_ramps_add_to_one_and_leave_a_constant_as_it_is():
    size = (16, 32, 48)
    # At every frame, row and column the weights of the reference add to 1: nothing is left for the division.
    for axis, length in zip(reference_axes(size, LAUNCH), (121, 1024, 1536), strict=True):
        total = torch.zeros(length, dtype=torch.float64)
        for _, place, weights in axis:
            total[place] += weights
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-14)
    # And so do ours, seen from outside: tiles of ones join to ones.
    size, tiling = (9, 5, 7), Tiling(96, 32, 24, 8)
    ones = (torch.ones_like(torch.empty(1, 1, 137, 160, 224)[tile.video]) for tile in list_tiles(size, tiling))
    joined = torch.cat(list(blend_tiles(ones, size, tiling)), dim=2)
    torch.testing.assert_close(joined, torch.ones(1, 1, 65, 160, 224), rtol=0, atol=1e-6)


@torch.inference_mode()
def test_one_tile_is_the_untiled_result(decoder):
    latents = torch.randn(2, WIDTH, 3, 2, 3, generator=torch.Generator().manual_seed(2))
    for tiling in (None, Tiling(), Tiling(96, 32, 24, 8)):
        (chunk,) = decode_tiled(decoder, latents, tiling)
        assert torch.equal(chunk, decoder(latents))


@torch.inference_mode()
def test_chunks_stream_in_order_and_do_not_overlap(decoder):
    latents = torch.randn(1, WIDTH, 9, 2, 3, generator=torch.Generator().manual_seed(3))
    tiling = Tiling(96, 32, 24, 8)
    done = []
    stream = decode_tiled(decoder, latents, tiling, on_tile=lambda *progress: done.append(progress))
    assert done == []
    first = next(stream)
    per_group = len(list_tiles((1, 2, 3), tiling))
    total = per_group * 4
    assert done == [(i + 1, total) for i in range(per_group)]  # nothing of the next group is needed for a chunk
    first_frames = first.clone()
    rest = list(stream)
    assert done == [(i + 1, total) for i in range(total)]
    assert total == len(list_tiles((9, 2, 3), tiling))
    # Later tiles start at frames 8, 24 and 40; each chunk ends where the next tile starts.
    assert [chunk.shape[2] for chunk in (first, *rest)] == [8, 16, 16, 25]
    assert torch.equal(first, first_frames)
    # A chunk doesn't share memory with the next, so a writer may drop or change it.
    storages = {chunk.untyped_storage().data_ptr() for chunk in (first, *rest)}
    assert len(storages) == 4


@torch.inference_mode()
def test_only_frames_shared_in_time_stay_buffered():
    size, tiling = (9, 2, 3), Tiling(temporal_tile_frames=24, temporal_overlap_frames=8)
    given = [torch.zeros(1, 3, 8 * (t.time.stop - t.time.start - 1) + 1, 64, 96) for t in list_tiles(size, tiling)]
    stream = blend_tiles(iter(given), size, tiling)
    next(stream)
    carried = stream.gi_frame.f_locals["carry"]
    # Tile one covers frames 0-16, tile two starts at 8: nine frames are shared, and no more memory is held.
    assert carried.shape[2] == 9
    assert carried.untyped_storage().nbytes() == carried.numel() * carried.element_size()


@torch.inference_mode()
def test_bf16_tiles_keep_their_dtype_and_level(decoder):
    latents = torch.randn(1, WIDTH, 5, 3, 4, generator=torch.Generator().manual_seed(4)).bfloat16()
    low = VideoDecoder(decoder.config)
    low.load_state_dict(decoder.state_dict())
    low.bfloat16()
    tiling = Tiling(64, 32, 24, 8)
    decoded = torch.cat(list(decode_tiled(low, latents, tiling)), dim=2)
    assert decoded.dtype == torch.bfloat16
    expected, _ = reference_decode(low, latents, tiling)
    assert ((decoded - expected).norm() / expected.norm()).item() < 4e-3


@torch.inference_mode()
def test_encoding_in_tiles_takes_each_latent_from_one_tile(encoder):
    video = torch.rand(1, 3, 57, 128, 192, generator=torch.Generator().manual_seed(5)) * 2 - 1
    done = []
    tiling = Tiling(128, 64, 32, 16)
    latents = encode_tiled(encoder, video, tiling, on_tile=lambda *progress: done.append(progress))
    assert latents.shape == (1, WIDTH, 8, 4, 6)
    # By hand. Width: tiles 0-4 and 2-6 meet in the middle of 2-4. Time: 0-4, then 1-6 and 3-8 keep 4-6 and 6-8.
    expected = torch.empty_like(latents)
    for frames, keep, target in (
        (slice(0, 25), slice(0, 4), slice(0, 4)),
        (slice(8, 41), slice(3, 5), slice(4, 6)),
        (slice(24, 57), slice(3, 5), slice(6, 8)),
    ):
        expected[:, :, target, :, :3] = encoder(video[:, :, frames, :, :128])[:, :, keep, :, :3]
        expected[:, :, target, :, 3:] = encoder(video[:, :, frames, :, 64:])[:, :, keep, :, 1:]
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-6)
    assert done == [(i, 6) for i in range(1, 7)]


@torch.inference_mode()
def test_encoding_one_tile_is_the_untiled_result(encoder):
    video = torch.rand(1, 3, 17, 64, 96, generator=torch.Generator().manual_seed(6)) * 2 - 1
    assert torch.equal(encode_tiled(encoder, video, Tiling(128, 64, 32, 16)), encoder(video))


def test_encoding_refuses_small_overlaps_and_odd_sizes(encoder):
    with pytest.raises(ValueError) as error:
        encode_tiled(encoder, torch.zeros(1, 3, 17, 64, 96), Tiling(128, 32, 32, 8))
    assert "spatial_overlap_px = 32: must be at least 64 for encoding" in str(error.value)
    assert "temporal_overlap_frames = 8: must be at least 16 for encoding" in str(error.value)
    with pytest.raises(ValueError, match="frames = 16: must be 8k"):
        encode_tiled(encoder, torch.zeros(1, 3, 16, 64, 96), Tiling(128, 64, 32, 16))


def test_a_vae_of_other_compression_is_refused():
    metadata = {**METADATA, "patch_size": 2}
    decoder = VideoDecoder(VideoVAEConfig.from_metadata(metadata))
    with pytest.raises(ValueError, match="compresses time by 8 and space by 16"):
        decode_tiled(decoder, torch.zeros(1, WIDTH, 2, 2, 2), None)
