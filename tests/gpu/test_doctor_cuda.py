"""`ltxgen doctor` on a machine with an NVIDIA GPU."""

from __future__ import annotations

import json

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_the_gpu_is_found(run_ltxgen, tmp_path):
    result = run_ltxgen("doctor", "--json", cwd=tmp_path)
    found = {(each["about"], each["name"]): each for each in json.loads(result.out)["findings"]}
    assert torch.cuda.get_device_name(0) in found["GPU", "cuda:0"]["what"]
    assert found["GPU", "driver"]["what"] != "unknown"
    assert "page-locked memory can be had" in found["GPU", "loading"]["what"]
    assert found["attention", "sdpa_cudnn"]["status"] == "ok"
    assert ("GPU", "cpu") not in found
    assert ("GPU", "links") in found or torch.cuda.device_count() == 1
