"""The fused video decoder on a GPU. Needs a Hopper or newer one with 4 GB of memory, and Triton."""

import sys
from pathlib import Path

import pytest
import torch

from ltxgen.media import Background, rgb_to_yuv420
from ltxgen.models.video_vae import VideoDecoder, VideoVAEConfig, decoder_for, why_not_fused

sys.path.append(str(Path(__file__).parents[1] / "models"))
from test_video_vae import LTX23, built, relative_l2

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(scope="module")
def decoder():
    return built(VideoDecoder, VideoVAEConfig.from_metadata(LTX23)).bfloat16().cuda()


# Patches of 8 x 16 pixels that come out even, and that don't.
@pytest.mark.parametrize("size", [(1, 4, 4), (3, 8, 16), (4, 5, 7)])
@torch.inference_mode()
def test_fused_is_as_near_to_float32_as_plain(decoder, size):
    obstacle = why_not_fused(torch.device("cuda", 0), torch.bfloat16)
    if obstacle is not None:
        pytest.skip(obstacle)
    latents = torch.randn(1, 128, *size, generator=torch.Generator().manual_seed(1)).bfloat16().cuda()
    high = VideoDecoder(decoder.config).cuda()
    high.load_state_dict(decoder.state_dict())
    wanted = high(latents.float())
    fused, _ = decoder_for(decoder, latents, "fused")
    plain_error = relative_l2(decoder(latents).float(), wanted)
    error = relative_l2(fused(latents).float(), wanted)
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
