from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from ltxgen.runtime import MemoryMeter, format_bytes, free_memory
from ltxgen.runtime import memory as memory_module

SIZE = 96 * 2**20


def resident(megabytes: int) -> np.ndarray:
    """Memory that is really used: every page written."""
    return np.full(megabytes * 2**20, 1, dtype=np.uint8)


def test_a_peak_that_is_gone_again_is_seen_and_forgotten():
    meter = memory_module._host_peak()
    if not isinstance(meter, memory_module._KernelPeak):
        pytest.skip("the kernel's peak can't be reset here")
    with MemoryMeter() as before:
        pass
    with MemoryMeter("cpu") as large:
        block = resident(96)
        del block
        assert large.peak_bytes >= before.peak_bytes + SIZE * 0.9
    with MemoryMeter() as after:
        pass
    assert large.peak_bytes == large.host_peak_bytes
    assert large.peak_bytes >= before.peak_bytes + SIZE * 0.9
    assert after.peak_bytes < large.peak_bytes - SIZE * 0.5


def test_sampling_sees_a_peak_when_the_kernel_keeps_none(monkeypatch, tmp_path):
    if not memory_module._STATUS.exists():
        pytest.skip("needs /proc")
    monkeypatch.setattr(memory_module, "_CLEAR_REFS", tmp_path / "missing" / "clear_refs")
    with MemoryMeter() as small:
        pass
    with MemoryMeter() as large:
        assert isinstance(large._host, memory_module._SampledPeak)
        block = resident(96)
        deadline = time.monotonic() + 10
        while large._host._peak < small.peak_bytes + SIZE * 0.9 and time.monotonic() < deadline:
            time.sleep(0.01)  # the thread looks while the block is there
        del block
    assert large.peak_bytes >= small.peak_bytes + SIZE * 0.9
    assert not large._host._thread.is_alive()


def test_without_proc_the_process_peak_is_used(monkeypatch, tmp_path):
    monkeypatch.setattr(memory_module, "_STATUS", tmp_path / "status")
    with MemoryMeter() as meter:
        pass
    assert 2**20 < meter.peak_bytes < 2**42


def test_formats():
    assert format_bytes(312 * 2**20) == "312 MiB"
    assert format_bytes(int(41.2 * 2**30)) == "41.2 GiB"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_peak_and_freeing():
    device = torch.device("cuda")
    with MemoryMeter(device) as meter:
        block = torch.ones(SIZE, dtype=torch.uint8, device=device)
        del block
    assert meter.peak_bytes >= SIZE
    with MemoryMeter(device) as after:
        pass
    assert after.peak_bytes <= meter.peak_bytes - SIZE
    free_memory(device)
    assert torch.cuda.memory_reserved(device) < SIZE


@pytest.mark.parametrize("version", [1, 2])
def test_host_memory_is_that_of_the_container(monkeypatch, tmp_path, version):
    monkeypatch.setattr(memory_module, "_CGROUP", tmp_path)
    whole = memory_module.free_host_bytes()
    assert whole > 0
    limit, used, cached, statistics = memory_module._CONTAINER_FILES[2 - version]
    (tmp_path / "memory").mkdir()
    (tmp_path / limit).write_text("1000\n")
    (tmp_path / used).write_text("700\n")
    (tmp_path / statistics).write_text(f"anon 600\n{cached} 50\n")
    assert memory_module.free_host_bytes() == 350
    (tmp_path / limit).write_text("max\n")
    assert memory_module.free_host_bytes() > 1000
