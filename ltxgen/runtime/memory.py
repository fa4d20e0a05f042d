"""Peak memory of a part of a run, on the device and on the host, and giving memory back."""

from __future__ import annotations

import re
import resource
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import psutil
import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): resets VmHWM to the current resident size
_CGROUP = Path("/sys/fs/cgroup")
# In cgroups v2 and v1: the limit, what is used, and how much of it is files' pages, which can be dropped.
_CONTAINER_FILES = (
    ("memory.max", "memory.current", "inactive_file", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file", "memory/memory.stat"),
)
_SAMPLE_SECONDS = 0.02
_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


class MemoryMeter:
    """The peak memory of a `with` block, readable while it runs and afterwards.

    `peak_bytes` is what torch had allocated at most on `device` if that is a GPU, else the process's resident memory;
    `host_peak_bytes` is the resident memory in either case (mapped files count while their pages are in use).
    The counters behind them are one per process: blocks follow each other and never nest.

    Resident memory comes from the kernel's own peak where that can be reset (Linux), else from samples every 20 ms,
    else (macOS) from the peak since the process started.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._host = _host_peak()
        self._final: tuple[int, int] | None = None

    @property
    def peak_bytes(self) -> int:
        return self._final[0] if self._final else self._device_peak()

    @property
    def host_peak_bytes(self) -> int:
        return self._final[1] if self._final else self._host.read()

    def __enter__(self) -> Self:
        if self.device.type == "cuda":
            torch.cuda.init()  # the counters exist from then on
            torch.cuda.reset_peak_memory_stats(self.device)
        self._host.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._final = (self._device_peak(), self._host.read())
        self._host.stop()

    def _device_peak(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return self._host.read()


def free_memory(device: torch.device | str) -> None:
    """Give the cached blocks of a GPU back to it.

    There is no garbage collection here: components die with their last reference (a test holds that), and a collection
    takes a third of a second, for all the objects that importing torch and transformers leaves behind.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


def format_bytes(size: int) -> str:
    """`41.2 GiB`, `312 MiB`, `7.5 KiB`: one decimal below 100."""
    scale, unit = next((each for each in _UNITS if size >= each[0]), _UNITS[-1])
    value = size / scale
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.1f} {unit}"


class _HostPeak(Protocol):
    def start(self) -> None: ...
    def read(self) -> int: ...
    def stop(self) -> None: ...


class _KernelPeak:
    """VmHWM, reset at the start."""

    def start(self) -> None:
        _CLEAR_REFS.write_text(_RESET_PEAK)

    def read(self) -> int:
        return _status_bytes("VmHWM")

    def stop(self) -> None:
        pass


class _SampledPeak:
    """The largest of VmRSS read every 20 ms in a thread."""

    def __init__(self) -> None:
        self._peak = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="memory-meter", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def read(self) -> int:
        self._peak = max(self._peak, _status_bytes("VmRSS"))
        return self._peak

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(_SAMPLE_SECONDS):
            self.read()


def free_device_bytes(device: torch.device) -> int:
    """What torch can still allocate on a GPU: free memory and its own unused cache, within the process's share."""
    free, total = torch.cuda.mem_get_info(device)
    allocated = torch.cuda.memory_allocated(device)
    cached = torch.cuda.memory_reserved(device) - allocated
    share = torch.cuda.get_per_process_memory_fraction(device)
    return min(free + cached, int(share * total) - allocated)


def free_host_bytes() -> int:
    """What this process can still have of the machine's memory, and of its container's share."""
    free = [psutil.virtual_memory().available]
    for limit, used, cached, statistics in _CONTAINER_FILES:
        try:
            whole = int((_CGROUP / limit).read_text())
            taken = int((_CGROUP / used).read_text())
            found = re.search(rf"^{cached} (\d+)$", (_CGROUP / statistics).read_text(), re.MULTILINE)
        except (OSError, ValueError):  # no such file in this version of cgroups, or `max`: no limit
            continue
        free.append(whole - taken + (int(found[1]) if found else 0))
    return max(0, min(free))


class _ProcessPeak:
    """The peak since the process started: all that is known without /proc."""

    def start(self) -> None:
        pass

    def read(self) -> int:
        unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS and KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def stop(self) -> None:
        pass


def _host_peak() -> _HostPeak:
    if not _STATUS.exists():
        return _ProcessPeak()
    try:
        _KernelPeak().start()
        _status_bytes("VmHWM")
    except (OSError, LookupError):  # some containers and sandboxes have no such file or forbid writing it
        return _SampledPeak()
    return _KernelPeak()


def _status_bytes(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise LookupError(f"{_STATUS} has no {name}")
    return int(found[1]) * 1024
