"""Layers in fp8 on a GPU: the fp8 units against the same arithmetic in float64, plain and compiled, and a whole run.

Needs one CUDA device of compute capability 8.9 or more.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.append(str(Path(__file__).parent.parent / "models"))
from test_compiled_cuda import in_bf16, on_gpu
from test_cuda import relative_l2, run
from test_transformer_float8 import in_float8
from test_transformer_passes import modalities, passes

from ltxgen.models.transformer.compilation import compile_blocks
from ltxgen.models.transformer.float8 import Float8Linear, scaled_rows

HAS_UNITS = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HAS_UNITS, reason="needs a CUDA device with fp8 units")]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("num_rows", [1, 7, 126, 1024])
@torch.inference_mode()
def test_a_layer_is_the_product_of_what_was_rounded(num_rows: int, bias: bool):
    torch.manual_seed(0)
    plain = nn.Linear(1024, 512, bias=bias, device="cuda", dtype=torch.bfloat16)
    layer = Float8Linear.of(plain)
    x = torch.randn(1, num_rows, 1024, device="cuda", dtype=torch.bfloat16)
    rows = scaled_rows(x)
    wanted = (rows.values.double() * rows.scales) @ (layer.weight.double() * layer.weight_scale).T
    wanted = wanted + plain.bias.double() if bias else wanted
    # bf16 rounds the result, and fast accumulation sums in fewer bits than fp32.
    assert relative_l2(layer(x), wanted) < 5e-3


@torch.inference_mode()
def test_compiled_blocks_are_as_near_the_plain_model_as_blocks_that_are_not():
    step = passes(*map(on_gpu, modalities("uniform", 1)), "guided")
    wanted = in_bf16().forward_passes(step)
    plain, quick = in_float8(in_bf16()), in_float8(in_bf16())
    compile_blocks(quick)
    for model in (plain, quick):
        for found, right in zip(model.forward_passes(step), wanted, strict=True):
            video, audio = (relative_l2(one, other) for one, other in zip(found, right, strict=True))
            assert 1e-3 < video < 0.1
            assert audio < 0.1  # 0 where audio is by itself: its layers are too narrow for fp8


def test_a_run_in_fp8_predicts_as_float32_within_its_rounding(tmp_path):
    exact = run(tmp_path / "exact", "runtime.device=cpu", "runtime.dtype=float32")
    found = run(tmp_path / "fp8", "runtime.device=cuda", "runtime.dtype=bfloat16", "precision=fp8")
    # Emulated on a CPU: 4.1e-2 of video and 1.7e-2 of audio, which is nearly all of it fp8's.
    for modality, most in (("video", 8e-2), ("audio", 5e-2)):
        name = f"base.call000.forward0.{modality}"
        assert 1e-2 < relative_l2(found[name], exact[name]) < most, name
