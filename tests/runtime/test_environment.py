from __future__ import annotations

import json
import os
import platform
import tempfile
from pathlib import Path

import pytest
import torch

from ltxgen.config.errors import Refusal
from ltxgen.models import fusing
from ltxgen.runtime import environment, resolve_device, resolve_dtype, set_threads, versions

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)


@pytest.fixture
def with_gpus(monkeypatch):
    def pretend(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return pretend


def refusal(call, *arguments) -> str:
    with pytest.raises(Refusal) as refused:
        call(*arguments)
    return str(refused.value)


def test_devices_without_a_gpu(with_gpus, monkeypatch):
    with_gpus(0)
    assert resolve_device("auto") == CPU
    assert resolve_device("cpu") == CPU
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    assert refusal(resolve_device, "cuda").startswith("runtime.device = cuda: this torch (")
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    assert refusal(resolve_device, "cuda:1") == (
        "runtime.device = cuda:1: no GPU is visible to torch; use runtime.device=cpu or auto"
    )


def test_devices_with_gpus(with_gpus):
    with_gpus(2)
    assert resolve_device("auto") == torch.device("cuda", 0)
    assert resolve_device("cuda", local_rank=1) == torch.device("cuda", 1)
    assert resolve_device("cuda:0", local_rank=1) == torch.device("cuda", 0)
    assert resolve_device("cpu", local_rank=1) == CPU
    assert "GPU 2 was asked for and this machine has 2" in refusal(resolve_device, "cuda", 2)
    assert "GPU 7" in refusal(resolve_device, "cuda:7")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "", "mps"])
def test_unknown_devices(name):
    assert "must be one of auto, cpu, cuda" in refusal(resolve_device, name)


def test_a_misspelt_device_gets_a_suggestion():
    assert "did you mean 'cuda'?" in refusal(resolve_device, "cudda")


def test_dtypes(monkeypatch):
    assert resolve_dtype(None, CPU) is torch.float32
    assert resolve_dtype("auto", GPU) is torch.bfloat16
    assert resolve_dtype("bfloat16", CPU) is torch.bfloat16
    assert resolve_dtype("float32", GPU) is torch.float32
    assert "must be one of auto, float32, bfloat16; did you mean 'float32'?" in refusal(resolve_dtype, "float23", CPU)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Old GPU")
    assert refusal(resolve_dtype, "bfloat16", GPU).startswith("runtime.dtype = bfloat16: the Old GPU has no bfloat16")


def test_threads():
    before = torch.get_num_threads()
    try:
        assert set_threads(1) == 1
        assert torch.get_num_threads() == 1
        assert set_threads(None) == 1
    finally:
        torch.set_num_threads(before)
    for wrong in (0, -2):
        assert f"runtime.threads = {wrong}: must be at least 1" in refusal(set_threads, wrong)


def test_versions_name_what_made_a_run():
    found = versions(CPU)
    assert found["torch"] == torch.__version__
    assert found["python"] == platform.python_version()
    assert found["device"] == "cpu"
    assert {"ltxgen", "cuda", "transformers", "av", "platform", "device_name"} <= set(found)
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("device", "dtype", "why"),
    [
        (CPU, torch.bfloat16, "need an NVIDIA GPU, and this is cpu"),
        (GPU, torch.float32, "are for 16-bit weights, and these are float32"),
        (GPU, torch.bfloat16, None),
    ],
)
def test_fused_kernels_are_taken_where_they_run(
    device: torch.device, dtype: torch.dtype, why: str | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fusing.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.version, "hip", None)
    assert environment.resolve_kernels("auto", "auto", device, dtype) is (why is None)
    assert not environment.resolve_kernels("plain", "auto", device, dtype)
    assert not environment.resolve_kernels("auto", "blocks", device, dtype)
    assert "runtime.compile=blocks" in refusal(environment.resolve_kernels, "fused", "blocks", device, dtype)
    if why is None:
        assert environment.resolve_kernels("fused", "none", device, dtype)
    else:
        wanted = f"runtime.kernels = fused: they {why}; use runtime.kernels=auto or plain"
        assert wanted in refusal(environment.resolve_kernels, "fused", "auto", device, dtype)


def test_fused_kernels_need_triton_and_no_gpu_of_amd(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fusing.importlib.util, "find_spec", lambda name: None)
    assert "need the package triton" in str(fusing.why_not_fused(GPU, torch.bfloat16))
    monkeypatch.setattr(fusing.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert fusing.why_not_fused(GPU, torch.bfloat16) == "need an NVIDIA GPU, and this is one of AMD"


def test_blocks_are_compiled_where_a_compiler_is(monkeypatch: pytest.MonkeyPatch):
    notes: list[str] = []
    monkeypatch.setattr(environment, "find_spec", lambda name: name)
    monkeypatch.setattr(environment.shutil, "which", lambda name: name)
    assert [environment.resolve_compile(name, False, CPU, notes.append) for name in ("auto", "blocks", "none")] == [
        0,
        1,
        0,
    ]
    assert [environment.resolve_compile(name, False, GPU, notes.append) for name in ("auto", "blocks", "none")] == [
        1,
        1,
        0,
    ]
    assert not environment.resolve_compile("auto", True, GPU, notes.append)  # with fused kernels
    assert notes == []

    monkeypatch.setattr(environment, "find_spec", lambda name: None)
    monkeypatch.setattr(environment.shutil, "which", lambda name: None)
    assert not environment.resolve_compile("auto", False, GPU, notes.append)
    assert [note for note in notes if note.startswith("compile blocks -> none: Triton")] == notes != []
    for device in (CPU, GPU):
        with pytest.raises(Refusal, match=r"runtime\.compile = blocks: .*use runtime\.compile=none"):
            environment.resolve_compile("blocks", False, device, notes.append)


def test_the_users_compile_cache_is_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    for given, kept in (("", "ours"), (f"{tempfile.gettempdir()}/torchinductor_me", "ours"), ("theirs", "theirs")):
        if given:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = given
        environment.use_compile_cache(Path("ours"))
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == kept
