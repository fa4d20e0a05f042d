"""Blocks whose weights are on the host or on disk, and on the device only around their call.

A few buffers on the device serve all blocks of a component in turn. When a block has run, the copy of the next one that
has no buffer yet starts, on a stream of its own; so copies run beside the blocks that are computed. The host waits for
nothing, except for a disk that is slower than the blocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ltxgen.memory.host import host_buffer, packed_bytes, unpacked

NUM_SLOTS = 2  # buffers on the device: of the block that runs, and of the one that is on its way

ALL_ROWS, NO_ROWS = slice(None), slice(0, 0)

Change = Callable[[Tensor], object]


class ReadRows(Protocol):
    """As `artifacts.placement.ReadRows`."""

    def __call__(self, rows: slice = ..., *, move: bool = True) -> Tensor: ...


class Store(Protocol):
    """Where the blocks' weights are kept. Blocks are numbered in the order in which they run."""

    waits: bool  # whether `fill` waits for something else than the device, so that it needs a thread
    reads: slice  # the rows that `load` reads

    def load(self, like: Tensor, read: ReadRows) -> Tensor:
        """A weight with the shape of `like`, as far as `keep` needs it."""

    def keep(self, block: int, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Take the weights of a block; returns tensors of the same shapes and dtypes that stand for them at rest."""

    def fill(self, block: int, buffer: Tensor, weights: Mapping[str, Tensor]) -> None:
        """Copy a block's weights into `weights`, which lie in `buffer` on the device as `host.unpacked` lays them."""

    def change(self, block: int, name: str, change: Change, anew: bool) -> None:
        """As `artifacts.placement.Placement.change`."""


class HostStore:
    """Everything in page-locked host memory, a buffer for each block."""

    waits = False
    reads = ALL_ROWS

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._homes: dict[int, Mapping[str, Tensor]] = {}
        self._buffers: dict[int, Tensor] = {}

    def load(self, like: Tensor, read: ReadRows) -> Tensor:
        return read(move=False)

    def keep(self, block: int, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        self._buffers[block] = host_buffer(packed_bytes(weights.values()), self._device)
        homes = self._homes[block] = unpacked(self._buffers[block], weights)
        for name, home in homes.items():
            home.copy_(weights[name])
        return homes

    def fill(self, block: int, buffer: Tensor, weights: Mapping[str, Tensor]) -> None:
        home = self._buffers[block]
        buffer[: len(home)].copy_(home, non_blocking=True)

    def change(self, block: int, name: str, change: Change, anew: bool) -> None:
        home = self._homes[block][name]
        moved = home.to(self._device, copy=True)
        change(moved)
        home.copy_(moved)


class DiskStore:
    """Nothing is kept: `read(block, name)` reads a weight whenever its block is about to run."""

    waits = True
    reads = NO_ROWS

    def __init__(self, read: Callable[[int, str], Tensor]) -> None:
        self._read = read
        self._changes: dict[tuple[int, str], list[Change]] = {}

    def load(self, like: Tensor, read: ReadRows) -> Tensor:
        return torch.empty((), dtype=read(self.reads, move=False).dtype).expand(like.shape)

    def keep(self, block: int, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return weights

    def fill(self, block: int, buffer: Tensor, weights: Mapping[str, Tensor]) -> None:
        for name, weight in weights.items():
            weight.copy_(self._read(block, name))
            for change in self._changes.get((block, name), ()):
                change(weight)

    def change(self, block: int, name: str, change: Change, anew: bool) -> None:
        if anew:
            self._changes.pop((block, name), None)
        else:
            self._changes.setdefault((block, name), []).append(change)


class _Slot:
    """A buffer on the device for one block at a time, and the events that order copies and computing."""

    def __init__(self, buffer: Tensor) -> None:
        self.buffer = buffer
        self.views: dict[int, Mapping[str, Tensor]] = {}
        on_cuda = buffer.device.type == "cuda"
        self.copied = torch.cuda.Event() if on_cuda else None
        self.used = torch.cuda.Event() if on_cuda else None
        self.pending: Future[None] | None = None


@dataclass(eq=False)
class BlockStream:
    """One component's streamed blocks, in the order in which they run, again and again.

    `enter` and `leave` stand around the call of a block: in between its parameters are on the device, else they are
    what stands for them at rest.
    """

    device: torch.device
    store: Store
    parameters: dict[int, Mapping[str, nn.Parameter]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rest: dict[int, Mapping[str, Tensor]] = {}
        self._slots: list[_Slot] = []
        self._ahead: deque[tuple[int, _Slot]] = deque()  # what was or is being copied, next first
        self._running: _Slot | None = None
        self._copies = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="weights") if self.store.waits else None

    def keep(self, block: int, parameters: Mapping[str, nn.Parameter]) -> None:
        """Take over a loaded block."""
        self.parameters[block] = parameters
        self._rest[block] = self.store.keep(block, {name: each.data for name, each in parameters.items()})
        self._point(block, self._rest[block])

    def enter(self, block: int) -> None:
        if not self._ahead or self._ahead[0][0] != block:
            self._start(block)
        _, slot = self._ahead.popleft()
        if slot.pending is not None:
            slot.pending.result()
        if slot.copied is not None:
            slot.copied.wait(torch.cuda.current_stream(self.device))
        self._point(block, slot.views[block])
        self._running = slot

    def leave(self, block: int) -> None:
        assert self._running is not None, "a block is entered before it is left"
        self._point(block, self._rest[block])
        slot, self._running = self._running, None
        if slot.used is not None:
            slot.used.record(torch.cuda.current_stream(self.device))
        last = self._ahead[-1][0] if self._ahead else block
        self._copy((last + 1) % len(self.parameters), slot)

    def change(self, block: int, name: str, change: Change, anew: bool) -> None:
        self._drain()
        self.store.change(block, name, change, anew)

    def free(self) -> None:
        """Give back what this takes of the device."""
        self._drain()
        if self._copies is not None:
            self._copies.synchronize()  # nothing reads the host's memory any more, which may be given back next
        self._slots.clear()

    def close(self) -> None:
        self.free()
        if self._reader is not None:
            self._reader.shutdown()

    def _start(self, block: int) -> None:
        """Copy from `block` on, as far as there are slots."""
        self._drain()
        with torch.inference_mode(False):
            while len(self._slots) < min(NUM_SLOTS, len(self.parameters)):
                self._slots.append(self._new_slot())
        for number, slot in enumerate(self._slots):
            self._copy((block + number) % len(self.parameters), slot)

    def _new_slot(self) -> _Slot:
        num_bytes = max(packed_bytes(weights.values()) for weights in self._rest.values())
        slot = _Slot(torch.empty(num_bytes, dtype=torch.uint8, device=self.device))
        slot.views = {block: unpacked(slot.buffer, weights) for block, weights in self._rest.items()}
        if slot.used is not None:  # what had this memory before may still be running
            slot.used.record(torch.cuda.current_stream(self.device))
        return slot

    def _copy(self, block: int, slot: _Slot) -> None:
        self._ahead.append((block, slot))
        if self._reader is None:
            self._fill(block, slot)
        else:
            slot.pending = self._reader.submit(self._fill, block, slot)

    def _fill(self, block: int, slot: _Slot) -> None:
        with torch.no_grad(), self._beside(slot):
            self.store.fill(block, slot.buffer, slot.views[block])

    @contextmanager
    def _beside(self, slot: _Slot) -> Iterator[None]:
        """On the stream of copies, after what used the slot before."""
        if self._copies is None or slot.used is None or slot.copied is None:
            yield
            return
        with torch.cuda.stream(self._copies):
            slot.used.wait(self._copies)
            yield
            slot.copied.record(self._copies)

    def _drain(self) -> None:
        """Forget what was copied ahead."""
        for _, slot in self._ahead:
            if slot.pending is not None:
                slot.pending.result()
        self._ahead.clear()
        if self._copies is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._copies)
            self._copies.wait_stream(torch.cuda.current_stream(self.device))

    def _point(self, block: int, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters[block].items():
            parameter.data = weights[name]


def hook(stream: BlockStream, number: int, block: nn.Module) -> None:
    """Let `stream` bring and take the weights of `block` around its calls."""

    def before(module: nn.Module, inputs: Any) -> None:
        stream.enter(number)

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        stream.leave(number)

    block.register_forward_pre_hook(before)
    block.register_forward_hook(after)


def streamed_blocks(num_blocks: int, num_kept: int) -> list[int]:
    """Which blocks are streamed if the device keeps `num_kept`: evenly spread, so that each copy has time."""
    num_streamed = num_blocks - num_kept
    return [(2 * number + 1) * num_blocks // (2 * num_streamed) for number in range(num_streamed)]
