"""Where a component's tensors come from: safetensors files, or seeded random numbers for the synthetic source."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import torch

from ltxgen.artifacts.read_ahead import ReadAhead
from ltxgen.artifacts.safetensors_file import ALL_ROWS, DTYPES, BadFile, SafetensorsFile, check_is_real_file

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
READ_AHEAD_FOR = ("cuda",)  # elsewhere a read is a copy from the system's cache to where it belongs, done at once


class TensorSource(Protocol):
    """Gives tensors by file key, one at a time. A context manager."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def expect(self, reads: Mapping[str, slice], device: torch.device) -> Sequence[str]:
        """Prepare for these reads (keys, with the rows), for `device`; returns the keys in the order to read them in.

        Other reads may come in between.
        """

    def read(self, key: str, device: torch.device | None, dtype: torch.dtype, rows: slice = ALL_ROWS) -> torch.Tensor:
        """A tensor, or consecutive rows of it, in memory of its own on `device`, or with None where the source has it;
        floating ones in `dtype`, others as stored."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class FileSource:
    """One safetensors file, or all shards of a model folder."""

    def __init__(self, path: Path) -> None:
        self._stack = ExitStack()
        self._file_of: dict[str, SafetensorsFile] = {}
        self._ahead: ReadAhead | None = None
        self._expected: deque[tuple[str, slice]] = deque()
        try:
            for part in weight_files(path) if path.is_dir() else [path]:
                file = self._stack.enter_context(SafetensorsFile(part))
                self._file_of.update(dict.fromkeys(file.header.tensors, file))
        except BaseException:
            self._stack.close()
            raise
        self.shapes: Mapping[str, tuple[int, ...]] = {
            key: file.header.tensors[key].shape for key, file in self._file_of.items()
        }

    def stored_dtype(self, key: str) -> torch.dtype:
        return DTYPES[self.stored_format(key)]

    def stored_format(self, key: str) -> str:
        """The format's own name of the dtype (`BF16`, `F8_E4M3`)."""
        return self._file_of[key].header.tensors[key].dtype

    def expect(self, reads: Mapping[str, slice], device: torch.device) -> Sequence[str]:
        order = sorted(reads, key=lambda key: self._file_of[key].bytes_of(key))
        if device.type in READ_AHEAD_FOR:
            self._expected = deque(
                (key, reads[key]) for key in order if self._file_of[key].info(key, reads[key]).num_bytes
            )
            ranges = [self._file_of[key].bytes_of(key, rows) for key, rows in self._expected]
            self._ahead = self._stack.enter_context(ReadAhead(ranges, device))
        return order

    def read(self, key: str, device: torch.device | None, dtype: torch.dtype, rows: slice = ALL_ROWS) -> torch.Tensor:
        file = self._file_of[key]
        if self._ahead is not None and self._expected and self._expected[0][0] == key:
            assert self._expected.popleft()[1] == rows, f"other rows of {key} than were expected"
            stored = file.read_from(self._ahead, key, rows, device or torch.device("cpu"))
        else:
            stored = file.read(key, rows)
        return stored.to(device=device, dtype=dtype if stored.is_floating_point() else stored.dtype)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def weight_files(folder: Path) -> list[Path]:
    """Safetensors files of a model folder: the shards of its index, else its single file.

    Raises BadFile when there are none or the index names one that isn't there.
    """
    index = folder / INDEX_FILE
    if index.exists():
        try:
            check_is_real_file(index)
        except BadFile as error:
            raise BadFile(f"{INDEX_FILE} {error}") from error
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            names = sorted(set(weight_map.values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadFile(f"{INDEX_FILE} is broken: it holds no weight_map") from error
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise BadFile(f"lacks {len(missing)} of {len(names)} weight files: {', '.join(missing)}")
        return [folder / name for name in names]
    if (folder / SINGLE_FILE).exists():
        return [folder / SINGLE_FILE]
    raise BadFile(f"holds neither {INDEX_FILE} nor {SINGLE_FILE}")
