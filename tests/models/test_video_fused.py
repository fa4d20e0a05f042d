"""The fused video VAE on the CPU against the plain layers: as plain torch, and its kernel in Triton's interpreter."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_video_vae import LTX2, LTX23, built, relative_l2

from ltxgen.models.video_vae import Tiling, VideoDecoder, VideoEncoder, VideoVAEConfig, encode_tiled
from ltxgen.models.video_vae.epilogue import torch_epilogue
from ltxgen.models.video_vae.fused import FusedDecoder, FusedEncoder

BLOCKS = {
    # Every stride, upsamplings that follow each other, and a width that is no power of two.
    "ltx23": {
        **LTX23,
        "decoder_blocks": [
            *(["res_x", {"num_layers": 1}], ["compress_space", {"multiplier": 2}], ["res_x", {"num_layers": 2}]),
            *(["compress_time", {"multiplier": 2}], ["compress_all", {"multiplier": 1}], ["res_x", {"num_layers": 1}]),
            ["compress_all", {"multiplier": 2}],
        ],
    },
    # Residual upsampling, pixels padded by reflection.
    "ltx2": {
        **LTX2,
        "decoder_blocks": [["res_x", {"num_layers": 1}], ["compress_all", {"residual": True, "multiplier": 2}]] * 3,
    },
}


def compare(name, causal, epilogue):
    """The relative L2 of the fused decoder's video to the plain layers', in fp32."""
    widths = {"latent_channels": 8, "encoder_base_channels": 8, "decoder_base_channels": 12}
    config = VideoVAEConfig.from_metadata({**BLOCKS[name], **widths, "causal_decoder": causal})
    decoder = built(VideoDecoder, config)
    latents = torch.randn(2, 8, 2, 2, 3, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        wanted = decoder(latents)
        fused = FusedDecoder(decoder, epilogue)
        error = relative_l2(fused(latents), wanted)
        # The weights are shared, and the layers that they come from run on.
        assert all(w.is_contiguous(memory_format=torch.channels_last_3d) for w in decoder.parameters() if w.ndim == 5)
        assert relative_l2(decoder(latents), wanted) <= 1e-6
    return error


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", BLOCKS)
def test_the_fused_decoder_equals_the_plain_one_in_float32(name, causal):
    assert compare(name, causal, torch_epilogue) <= 1e-6


def test_one_frame_of_latents_and_odd_sizes():
    decoder = built(VideoDecoder, VideoVAEConfig.from_metadata({**LTX23, "decoder_base_channels": 8}))
    for size in [(1, 1, 1), (1, 3, 1), (4, 1, 2)]:
        latents = torch.randn(1, 128, *size, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            wanted = decoder(latents)
            assert relative_l2(FusedDecoder(decoder)(latents), wanted) <= 1e-6


def test_reflected_pixels_take_two_latents_a_side():
    with torch.device("meta"):
        fused = FusedDecoder(VideoDecoder(VideoVAEConfig.from_metadata(LTX2)))
    with pytest.raises(ValueError, match=r"latents of \(2, 1, 4\): the decoder reflects pixels, which takes 2 a side"):
        fused(torch.empty(1, 128, 2, 1, 4, device="meta"))


ENCODERS = {
    "ltx23": [
        *(["res_x", {"num_layers": 1}], ["compress_space_res", {"multiplier": 2}], ["res_x", {"num_layers": 2}]),
        *(["compress_time_res", {"multiplier": 2}], ["compress_all_res", {"multiplier": 1}]),
        *(["res_x", {"num_layers": 1}], ["compress_all_res", {"multiplier": 2}]),
    ],
    "residual before the last layer": [["compress_all_res", {"multiplier": 2}], ["res_x", {"num_layers": 1}]] * 3,
}


def compare_encoders(name, padding, epilogue):
    """The relative L2 of the fused encoder's latents to the plain layers', in fp32."""
    widths = {"latent_channels": 8, "encoder_base_channels": 8, "spatial_padding_mode": padding}
    config = VideoVAEConfig.from_metadata({**LTX23, "encoder_blocks": ENCODERS[name], **widths})
    encoder = built(VideoEncoder, config)
    video = torch.randn(2, 3, 17, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        wanted = encoder(video)
        fused = FusedEncoder(encoder, epilogue)
        error = relative_l2(fused(video), wanted)
        assert relative_l2(encoder(video), wanted) <= 1e-6  # which runs on with the weights that it shares
    return error


@pytest.mark.parametrize("padding", ["zeros", "reflect"])
@pytest.mark.parametrize("name", ENCODERS)
def test_the_fused_encoder_equals_the_plain_one_in_float32(name, padding):
    assert compare_encoders(name, padding, torch_epilogue) <= 1e-6


@torch.inference_mode()
def test_the_fused_encoder_takes_pictures_and_tiles():
    encoder = built(VideoEncoder, VideoVAEConfig.from_metadata({**LTX23, "encoder_base_channels": 8}))
    fused = FusedEncoder(encoder)
    picture = torch.randn(1, 3, 1, 32, 64, generator=torch.Generator().manual_seed(1))
    assert relative_l2(fused(picture), encoder(picture)) <= 1e-6
    video = torch.randn(1, 3, 17, 64, 160, generator=torch.Generator().manual_seed(1))
    tiling = Tiling(96, 64)
    assert relative_l2(encode_tiled(fused, video, tiling), encode_tiled(encoder, video, tiling)) <= 1e-6
    with pytest.raises(ValueError, match="frames = 2: must be 8k"):
        fused(torch.zeros(1, 3, 2, 32, 32))


INTERPRETED = """
from epilogue_cases import CASES, worst_error
from test_video_fused import BLOCKS, ENCODERS, compare, compare_encoders
from ltxgen.models.video_vae.kernels import triton_epilogue

def on_contiguous(y, *arguments, **options):
    triton_epilogue(y.contiguous(), *arguments, **options)  # CPU convolutions don't keep channels last

for name, case in CASES.items():
    print(name, worst_error(case, "cpu"))
for name in BLOCKS:
    for causal in (False, True):
        error = compare(name, causal, on_contiguous)
        print(name, causal, error)
        assert error <= 1e-6
for name in ENCODERS:
    error = compare_encoders(name, "zeros", on_contiguous)
    print(name, error)
    assert error <= 1e-6
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton comes with torch's CUDA builds")
def test_the_kernel_in_tritons_interpreter():
    # A process of its own: Triton reads the switch when its kernels are defined.
    folder = Path(__file__).parent
    paths = os.pathsep.join([str(folder), str(folder.parent / "gpu"), *sys.path])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
