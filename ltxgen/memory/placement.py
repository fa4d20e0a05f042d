"""A placement (`artifacts.placement`) that has the blocks of large components on the host or on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ltxgen.memory.stream import (
    ALL_ROWS,
    BlockStream,
    Change,
    DiskStore,
    HostStore,
    ReadRows,
    Store,
    hook,
    streamed_blocks,
)
from ltxgen.models.blocks import BLOCKS


class ReadTensor(Protocol):
    """As `artifacts.load.ReadTensor`."""

    def __call__(self, key: str, device: torch.device | None) -> Tensor: ...


class _Weight(NamedTuple):
    """One of a streamed block's parameters; `block` counts those that are streamed."""

    stream: BlockStream
    block: int
    name: str


class StreamedWeights:
    """Streams all blocks but `num_kept` of each component (by name, none where it isn't there) to `device`.

    `read_again` opens a component's own weights for those that come from disk.
    """

    def __init__(
        self,
        device: torch.device,
        num_kept: Mapping[str, int],
        source: Literal["host", "disk"],
        read_again: Callable[[str], AbstractContextManager[ReadTensor]],
    ) -> None:
        self._device = device
        self._num_kept = num_kept
        self._source = source
        self._read_again = read_again
        self._streams: dict[str, BlockStream] = {}
        self._files: dict[str, ExitStack] = {}
        self._wanted: dict[int, _Weight] = {}  # by the id of a parameter on the meta device
        self._loaded: dict[tuple[BlockStream, int], dict[str, nn.Parameter | None]] = {}  # of blocks that lack some
        self._weights: dict[int, _Weight] = {}  # by the id of a parameter

    def prepare(self, component: str, module: nn.Module) -> None:
        if component not in BLOCKS:
            return
        blocks = list(module.get_submodule(BLOCKS[component]).children())
        numbers = streamed_blocks(len(blocks), self._num_kept.get(component, 0))
        if not numbers:
            return
        stream = BlockStream(self._device, self._store(component, numbers))
        self._streams[component] = stream
        for position, number in enumerate(numbers):
            hook(stream, position, blocks[number])
            self._loaded[stream, position] = dict.fromkeys(name for name, _ in blocks[number].named_parameters())
            for name, parameter in blocks[number].named_parameters():
                self._wanted[id(parameter)] = _Weight(stream, position, name)

    def reads(self, like: Tensor) -> slice:
        weight = self._wanted.get(id(like))
        return ALL_ROWS if weight is None else weight.stream.store.reads

    def place(self, like: Tensor, read: ReadRows) -> Tensor:
        weight = self._wanted.pop(id(like), None)
        if weight is None:
            return read()
        stream, block, name = weight
        parameter = nn.Parameter(stream.store.load(like, read), requires_grad=False)
        self._weights[id(parameter)] = weight
        loaded = self._loaded[stream, block]
        loaded[name] = parameter
        if all(each is not None for each in loaded.values()):
            stream.keep(block, self._loaded.pop((stream, block)))  # type: ignore[arg-type]
        return parameter

    def rows(self, tensor: Tensor) -> slice:
        return ALL_ROWS

    def local(self, tensor: Tensor) -> Tensor:
        return tensor

    def change(self, tensor: Tensor, change: Change, *, anew: bool = False) -> None:
        weight = self._weights.get(id(tensor))
        if weight is None:
            change(tensor)
        else:
            weight.stream.change(weight.block, weight.name, change, anew)

    def set_aside(self, names: Sequence[str]) -> None:
        for name in self._streams.keys() & set(names):
            self._streams[name].free()

    def released(self, names: Sequence[str]) -> None:
        for name in self._streams.keys() & set(names):
            stream = self._streams.pop(name)
            stream.close()
            for parameters in stream.parameters.values():  # one by one: a thread may be adding another component's
                for parameter in parameters.values():
                    self._weights.pop(id(parameter), None)
            self._files.pop(name, ExitStack()).close()

    def _store(self, component: str, numbers: Sequence[int]) -> Store:
        if self._source == "host":
            return HostStore(self._device)
        files = self._files[component] = ExitStack()
        read = files.enter_context(self._read_again(component))

        def read_weight(block: int, name: str) -> Tensor:
            return read(f"{BLOCKS[component]}.{numbers[block]}.{name}", None)

        return DiskStore(read_weight)
