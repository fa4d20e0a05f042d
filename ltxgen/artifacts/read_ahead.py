"""Byte ranges of files on their way to a GPU: read by several threads into a ring of page-locked buffers, and copied
from there while the next ones are read.

Neighbouring ranges are read as one, large ones in pieces; host memory is that of the ring, whatever is read.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

PIECE_BYTES = 2**24  # a power of two: torch rounds page-locked memory up to one, and keeps it for the next reader
NUM_BUFFERS = 16
NUM_THREADS = min(8, os.cpu_count() or 1)
COPIES = 2  # buffers whose copies to the device may be under way; the others are being read into


@dataclass(frozen=True, order=True)
class ByteRange:
    """[begin, end) of an open file, by its descriptor."""

    file: int
    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.begin


@dataclass
class _Piece:
    """A piece in a buffer; `reading` gives how much of it the file had."""

    num_bytes: int
    buffer: Tensor
    reading: Future[int]


class ReadAhead:
    """The bytes of `ranges`, one after the other, for copies to `device`. A context manager, used by one thread."""

    def __init__(
        self,
        ranges: Iterable[ByteRange],
        device: torch.device,
        *,
        piece_bytes: int = PIECE_BYTES,
        num_buffers: int = NUM_BUFFERS,
    ) -> None:
        assert num_buffers > COPIES, "one buffer at least must be free to be read into"
        self._on_cuda = device.type == "cuda"
        self._ranges = cut(joined(ranges), piece_bytes)
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="reading")
        self._pieces: deque[_Piece] = deque()
        self._used = 0  # bytes of the first piece
        self._copied: deque[tuple[Tensor, torch.cuda.Event]] = deque()
        for _ in range(num_buffers):
            if not self._read_next(None, piece_bytes):
                break

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(cancel_futures=True)

    def fill(self, destination: Tensor) -> bool:
        """Let the next bytes come into `destination`, contiguous uint8 on any device, on its current stream.

        False where the file has ended before.
        """
        done = 0
        while done < len(destination):
            piece = self._pieces[0]
            part = min(piece.num_bytes - self._used, len(destination) - done)
            if piece.reading.result() < self._used + part:
                return False
            source = piece.buffer[self._used : self._used + part]
            destination[done : done + part].copy_(source, non_blocking=True)
            done, self._used = done + part, self._used + part
            if self._used == piece.num_bytes:
                self._pieces.popleft()
                self._used = 0
                self._give_back(piece.buffer)
        return True

    def _give_back(self, buffer: Tensor) -> None:
        if not self._on_cuda:
            self._read_next(buffer, len(buffer))
            return
        self._copied.append((buffer, torch.cuda.current_stream().record_event()))
        if len(self._copied) > COPIES:
            oldest, event = self._copied.popleft()
            event.synchronize()
            self._read_next(oldest, len(oldest))

    def _read_next(self, buffer: Tensor | None, piece_bytes: int) -> bool:
        """Let a thread read the next piece into `buffer`, or into a new one; False if there is none."""
        wanted = next(self._ranges, None)
        if wanted is None:
            return False
        if buffer is None:
            buffer = torch.empty(piece_bytes, dtype=torch.uint8, pin_memory=self._on_cuda)
        view = memoryview(buffer.numpy())[: wanted.num_bytes]  # type: ignore[arg-type]
        self._pieces.append(_Piece(wanted.num_bytes, buffer, self._threads.submit(_read, wanted, view)))
        return True


def _read(wanted: ByteRange, view: memoryview) -> int:
    done = 0
    while done < wanted.num_bytes:
        num_bytes = os.preadv(wanted.file, [view[done:]], wanted.begin + done)
        if num_bytes == 0:
            break
        done += num_bytes
    return done


def joined(ranges: Iterable[ByteRange]) -> Iterator[ByteRange]:
    """Ranges with each that begins where the one before it ends made part of that; empty ones are left out."""
    last: ByteRange | None = None
    for each in ranges:
        if each.num_bytes == 0:
            continue
        if last is not None and (last.file, last.end) == (each.file, each.begin):
            last = ByteRange(last.file, last.begin, each.end)
            continue
        if last is not None:
            yield last
        last = each
    if last is not None:
        yield last


def cut(ranges: Iterable[ByteRange], num_bytes: int) -> Iterator[ByteRange]:
    """Ranges in pieces of at most so many bytes."""
    for each in ranges:
        for begin in range(each.begin, each.end, num_bytes):
            yield ByteRange(each.file, begin, min(begin + num_bytes, each.end))
