"""The fused video VAE on a GPU. Needs an NVIDIA GPU with 1 GB of memory, and Triton."""

import sys
from pathlib import Path

import pytest
import torch

from ltxgen.media import Background, rgb_to_yuv420
from ltxgen.models.video_vae import VideoDecoder, VideoEncoder, VideoVAEConfig, decoder_for, encoder_for

sys.path.append(str(Path(__file__).parents[1] / "models"))
from test_video_vae import LTX2, LTX23, built, relative_l2

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_the_kernel_equals_plain_torch():
    pytest.importorskip("triton", reason="comes with torch's CUDA builds")
    from epilogue_cases import CASES, worst_error

    for name, case in CASES.items():
        print(name, worst_error(case))


@pytest.mark.parametrize("metadata", [LTX23, LTX2], ids=["ltx23", "ltx2"])
@pytest.mark.parametrize("size", [(1, 4, 4), (3, 8, 16), (4, 5, 7)])
@torch.inference_mode()
def test_fused_is_as_near_to_float32_as_plain(metadata, size):
    pytest.importorskip("triton", reason="comes with torch's CUDA builds")
    decoder = (
        built(VideoDecoder, VideoVAEConfig.from_metadata({**metadata, "decoder_base_channels": 32})).bfloat16().cuda()
    )
    latents = torch.randn(1, 128, *size, generator=torch.Generator().manual_seed(1)).bfloat16().cuda()
    high = VideoDecoder(decoder.config).cuda()
    high.load_state_dict(decoder.state_dict())
    wanted = high(latents.float())
    plain_error = relative_l2(decoder(latents).float(), wanted)
    fused, _ = decoder_for(decoder, latents, "fused")
    error = relative_l2(fused(latents).float(), wanted)
    print(f"relative L2 to float32: fused {error:.2e}, plain {plain_error:.2e}")
    assert error <= 1.05 * plain_error


@pytest.mark.parametrize("size", [(1, 128, 128), (25, 256, 320)])
@torch.inference_mode()
def test_the_fused_encoder_is_as_near_to_float32_as_plain(size):
    pytest.importorskip("triton", reason="comes with torch's CUDA builds")
    config = VideoVAEConfig.from_metadata({**LTX23, "encoder_base_channels": 32})
    encoder = built(VideoEncoder, config).bfloat16().cuda()
    video = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1)).bfloat16().cuda()
    high = VideoEncoder(config).cuda()
    high.load_state_dict(encoder.state_dict())
    wanted = high(video.float())
    plain_error = relative_l2(encoder(video).float(), wanted)
    fused, _ = encoder_for(encoder, "fused")
    error = relative_l2(fused(video).float(), wanted)
    print(f"relative L2 to float32: fused {error:.2e}, plain {plain_error:.2e}")
    assert error <= 1.05 * plain_error


def test_work_in_the_background_sees_finished_frames():
    seen = []
    expected = []
    with Background(lambda frames: seen.append(rgb_to_yuv420(frames[0]).cpu())) as background:
        for step in range(6):
            busy = torch.randn(4096, 4096, device="cuda")
            for _ in range(20):
                busy = (busy @ busy).tanh()
            frames = (busy[:512, :768] * 0).add(step).to(torch.uint8)[None, :, :, None].expand(-1, -1, -1, 3)
            background(frames.contiguous())
            expected.append(step)
            del busy, frames
    wanted = [rgb_to_yuv420(torch.full((512, 768, 3), step, dtype=torch.uint8)) for step in expected]
    assert all(torch.equal(a, b) for a, b in zip(seen, wanted, strict=True))
