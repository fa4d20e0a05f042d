"""Host memory that a GPU reads and writes by itself: page-locked, exactly as large as asked for, given back at once.

torch's own pinned memory comes in powers of two, a third more for a block of the 22B transformer, and stays in a cache.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

ALIGNMENT = 256  # of every tensor in a buffer; what kernels may assume of a tensor of its own


class _Pages(mmap.mmap):
    """Anonymous pages, locked for CUDA until nothing refers to them."""

    address: int | None = None

    def lock(self, address: int, num_bytes: int) -> bool:
        failed = torch.cuda.cudart().cudaHostRegister(address, num_bytes, 0)
        self.address = None if int(failed) else address
        return self.address is not None

    def __del__(self) -> None:
        if self.address is not None:
            torch.cuda.cudart().cudaHostUnregister(self.address)


def host_buffer(num_bytes: int, device: torch.device) -> Tensor:
    """(num_bytes,) uint8 on the host, for copies from and to `device`."""
    if device.type != "cuda" or num_bytes == 0:
        return torch.empty(num_bytes, dtype=torch.uint8)
    pages = _Pages(-1, num_bytes)
    with contextlib.suppress(AttributeError, OSError):  # advice only: large pages are locked faster
        pages.madvise(mmap.MADV_HUGEPAGE)
    buffer = torch.frombuffer(pages, dtype=torch.uint8)
    if pages.lock(buffer.data_ptr(), num_bytes):
        return buffer
    # A sandbox may forbid to lock what exists. CUDA keeps that error for the next one who asks.
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device=device)
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)


def packed_bytes(tensors: Iterable[Tensor]) -> int:
    """The length of a buffer that holds tensors like these."""
    return sum(_padded(tensor) for tensor in tensors)


def unpacked(buffer: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in `buffer` with the shapes and dtypes of `tensors`, contiguous, one after the other.

    Each has a storage of its own, so that it looks like any parameter: compiled code is made for its storage offset.
    """
    made = {}
    begin = 0
    storage = buffer.untyped_storage()
    for name, like in tensors.items():
        part = storage[begin : begin + like.numel() * like.element_size()]
        made[name] = torch.empty(0, dtype=like.dtype, device=buffer.device).set_(part, 0, like.shape, _strides(like))
        begin += _padded(like)
    return made


def _padded(tensor: Tensor) -> int:
    return -(-tensor.numel() * tensor.element_size() // ALIGNMENT) * ALIGNMENT


def _strides(like: Tensor) -> tuple[int, ...]:
    return torch.empty(like.shape, device="meta").stride()
