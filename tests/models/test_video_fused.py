"""The fused decoder in Triton's interpreter, on the CPU, against the plain layers."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton comes with torch's CUDA builds")

COMPARED = """
import torch
from test_video_vae import LTX23, built, relative_l2
from ltxgen.models.video_vae import VideoDecoder, VideoVAEConfig
from ltxgen.models.video_vae.fused import FusedDecoder

blocks = [["res_x", {"num_layers": 1}], ["compress_space", {"multiplier": 2}], ["res_x", {"num_layers": 2}],
          ["compress_time", {"multiplier": 2}], ["compress_all", {"multiplier": 1}], ["res_x", {"num_layers": 1}],
          ["compress_all", {"multiplier": 2}]]
for causal in (False, True):
    metadata = {**LTX23, "latent_channels": 16, "encoder_base_channels": 16, "decoder_base_channels": 16,
                "decoder_blocks": blocks, "causal_decoder": causal}
    decoder = built(VideoDecoder, VideoVAEConfig.from_metadata(metadata))
    latents = torch.randn(1, 16, 2, 1, 2, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        error = relative_l2(FusedDecoder(decoder)(latents), decoder(latents))
    print(causal, error)
    assert error <= 1e-6
"""


def test_the_fused_decoder_equals_the_plain_one_in_float32():
    # A process of its own: Triton reads the switch when its kernels are defined.
    folder = os.path.dirname(__file__)
    paths = os.pathsep.join([folder, *sys.path])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", COMPARED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
