"""The embedded model on a GPU against the CPU. Needs one CUDA device and a few hundred MB of its memory."""

import pytest
import torch
from safetensors.torch import load_file

from ltxgen.cli import main

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

SMALL = [
    "request.height=128",
    "request.width=192",
    "request.num_frames=17",
    "stages.base.steps=4",
    "output.tensors=true",
]


def run(folder, *words):
    with pytest.raises(SystemExit) as exit_:
        main(["+recipe=ltx23_two_stage", "model=ltx23_tiny", *SMALL, f"output.dir={folder}", *words])
    assert exit_.value.code == 0
    return load_file(folder / "tensors.safetensors")


def relative_l2(a, b):
    a, b = a.double(), b.double()
    return ((a - b).norm() / b.norm()).item()


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory):
    return run(tmp_path_factory.mktemp("cpu") / "run", "runtime.device=cpu")


def test_float32_is_the_same_video_on_both(on_cpu, tmp_path):
    on_gpu = run(tmp_path / "run", "runtime.device=cuda")
    assert on_gpu.keys() == on_cpu.keys()
    assert torch.equal(on_gpu["base.noise.video"], on_cpu["base.noise.video"])
    for name in ("base.final.video", "base.final.audio", "refine.final.video", "refine.final.audio", "audio.waveform"):
        assert relative_l2(on_gpu[name], on_cpu[name]) < 1e-3, name


def test_bfloat16_predicts_as_float32_within_its_rounding(on_cpu, tmp_path):
    # One pass: over many steps of a random model, rounding grows without bound.
    on_gpu = run(tmp_path / "run", "runtime.device=cuda", "runtime.dtype=bfloat16")
    for name in ("context.video.positive", "context.audio.positive"):
        assert relative_l2(on_gpu[name], on_cpu[name]) < 2e-2, name
    for modality in ("video", "audio"):
        name = f"base.call000.forward0.{modality}"
        assert relative_l2(on_gpu[name], on_cpu[name]) < 5e-2, name


def test_device_noise_is_another_stream(on_cpu, tmp_path):
    on_gpu = run(tmp_path / "run", "runtime.device=cuda", "runtime.noise=device")
    assert relative_l2(on_gpu["base.noise.video"], on_cpu["base.noise.video"]) > 1
