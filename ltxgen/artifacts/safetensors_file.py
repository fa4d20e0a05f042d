"""Safetensors files read header first: what a file holds, whether it is whole, and single tensors of it.

Tensors are read with plain file reads instead of a memory map: mapped pages count as resident memory of the process,
and the loader promises to hold little beyond the component that it fills. Format:
https://github.com/huggingface/safetensors#format (8 bytes little-endian header length, JSON header, data).
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import torch

from ltxgen.artifacts.read_ahead import ByteRange, ReadAhead

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
LFS_POINTER_START = b"version https://git-lfs.github.com/spec"

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


ALL_ROWS = slice(None)  # of a tensor's first dimension; the only ones that a scalar has


class BadFile(Exception):
    """A file that can't be used; the text says why and what to do, without the path."""


@dataclass(frozen=True)
class TensorInfo:
    """One entry of a header: format dtype name, shape, and [begin, end) bytes counted from the data's start."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.begin

    def of_rows(self, rows: slice) -> TensorInfo:
        """Where consecutive rows (of the first dimension) lie: tensors are stored row by row."""
        start, stop, _ = rows.indices(self.shape[0])
        row_bytes = self.num_bytes // max(self.shape[0], 1)
        shape = (stop - start, *self.shape[1:])
        return TensorInfo(self.dtype, shape, self.begin + start * row_bytes, self.begin + stop * row_bytes)


@dataclass(frozen=True)
class Header:
    """A whole, consistent header: tensors by key, text metadata, and where the data begin in the file."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    data_start: int


def read_header(path: Path) -> Header:
    """Read and verify the header of `path` without touching the data.

    Raises BadFile for anything that isn't a whole safetensors file: not there, a folder, empty, a Git LFS pointer, a
    broken header, or a size that doesn't fit the header.
    """
    check_is_real_file(path)
    stat = path.stat()
    return _read_header(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)


@functools.lru_cache(maxsize=64)
def _read_header(path: Path, size: int, *unchanged: int) -> Header:
    """The same for a file with these facts: a plan asks for it at every turn, and it may have thousands of tensors."""
    with path.open("rb") as file:
        if size < 8:
            raise BadFile(f"is {size} bytes long, too short for a safetensors file; download it again")
        length = int.from_bytes(file.read(8), "little")
        if length < 2 or length > MAX_HEADER_BYTES:
            raise BadFile("is not a safetensors file (its first 8 bytes give no sensible header length)")
        if length > size - 8:
            raise BadFile(f"is truncated: {size:,} bytes, but its header alone needs {length + 8:,}; download it again")
        raw = file.read(length)
    try:
        entries = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadFile("is not a safetensors file (its header is no JSON)") from error
    if not isinstance(entries, dict):
        raise BadFile("is not a safetensors file (its header is no JSON object)")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise BadFile("has a broken safetensors header: __metadata__ is no JSON object")
    tensors = {key: _tensor_info(key, entry) for key, entry in entries.items()}
    _check_data_size(tensors, actual=size - 8 - length)
    return Header(tensors, {str(k): str(v) for k, v in metadata.items()}, data_start=8 + length)


def check_is_real_file(path: Path) -> None:
    """Raise BadFile unless `path` is a file with content that isn't a Git LFS pointer."""
    if not path.exists():
        raise BadFile("does not exist")
    if not path.is_file():
        raise BadFile("is a folder; a file is wanted")
    if path.stat().st_size == 0:
        raise BadFile("is empty (0 bytes); download it again")
    try:
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER_START))
    except OSError as error:
        raise BadFile(f"can't be read: {error.strerror}") from error
    if start == LFS_POINTER_START:
        raise BadFile(
            "is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository or use `ltxgen fetch`"
        )


class SafetensorsFile:
    """An open safetensors file whose tensors are read one at a time. Use it as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header = read_header(path)
        self._file: BinaryIO = path.open("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._file.close()

    def info(self, key: str, rows: slice = ALL_ROWS) -> TensorInfo:
        """Of a tensor, or of some rows of it."""
        info = self.header.tensors[key]
        return info if rows == ALL_ROWS else info.of_rows(rows)

    def bytes_of(self, key: str, rows: slice = ALL_ROWS) -> ByteRange:
        """Where a tensor, or some rows of it, lie in the file."""
        info, start = self.info(key, rows), self.header.data_start
        return ByteRange(self._file.fileno(), start + info.begin, start + info.end)

    def read(self, key: str, rows: slice = ALL_ROWS) -> torch.Tensor:
        """The tensor `key`, or some rows of it, in its stored dtype, on the CPU, in memory of its own."""
        info = self.info(key, rows)
        data = torch.empty(info.num_bytes, dtype=torch.uint8)
        if info.num_bytes:
            self._file.seek(self.header.data_start + info.begin)
            read = self._file.readinto(data.numpy().data)  # type: ignore[attr-defined]
            if read != info.num_bytes:
                raise ended(key)
        return data.view(DTYPES[info.dtype]).reshape(info.shape)

    def read_from(self, ahead: ReadAhead, key: str, rows: slice, device: torch.device) -> torch.Tensor:
        """As `read`, on `device`, from what has been read ahead."""
        info = self.info(key, rows)
        data = torch.empty(info.num_bytes, dtype=torch.uint8, device=device)
        if not ahead.fill(data):
            raise ended(key)
        return data.view(DTYPES[info.dtype]).reshape(info.shape)


def ended(key: str) -> BadFile:
    return BadFile(f"ended while {key} was read: it has changed since it was checked")


def write_safetensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write CPU tensors in the order of their keys. Equal content gives equal bytes.

    The library's own writer puts metadata in a random order.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for key, tensor in sorted(tensors.items()):
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[key] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for _, tensor in sorted(tensors.items()):
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _tensor_info(key: str, entry: Any) -> TensorInfo:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(int(n) for n in entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise BadFile(f"has a broken safetensors header at tensor {key}") from error
    if dtype not in DTYPES:
        raise BadFile(f"stores {key} as {dtype}, which is not supported; supported are {', '.join(DTYPES)}")
    if begin < 0 or end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
        raise BadFile(f"has a broken safetensors header: {key} {list(shape)} {dtype} in bytes {begin}..{end}")
    return TensorInfo(dtype, shape, begin, end)


def _check_data_size(tensors: Mapping[str, TensorInfo], actual: int) -> None:
    expected = max((info.end for info in tensors.values()), default=0)
    if actual < expected:
        raise BadFile(f"is truncated: {actual:,} of {expected:,} bytes of tensors are there; download it again")
    if actual > expected:
        raise BadFile(f"has {actual - expected:,} bytes more than its header describes; download it again")
