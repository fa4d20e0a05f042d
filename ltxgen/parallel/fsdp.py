"""Weights sharded by FSDP2, block by block, over all ranks of a run.

A rank keeps some rows of every tensor of a block. The block is whole while it is called, and the next one's rows are on
their way meanwhile; so a rank holds its part and two whole blocks. Gathering a block is a collective call: all ranks
call the same blocks, in order and equally often. What was gathered for a call that did not come waits for the next one.
"""

from __future__ import annotations

import functools
import gc
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, UnshardHandle, fully_shard
from torch.distributed.tensor import DTensor

from ltxgen.models.blocks import BLOCKS
from ltxgen.parallel.weights import rows_of_rank


class ShardedWeights:
    """A placement (`artifacts.placement`) that shards the blocks of large components, all ranks alike."""

    def __init__(self, num_ranks: int, device_type: str) -> None:
        self.mesh = _mesh(num_ranks, device_type)
        self._ahead: dict[str, tuple[FSDPModule, UnshardHandle]] = {}  # of a component, the block that should come next

    def prepare(self, component: str, module: nn.Module) -> None:
        """Makes each block a unit of its own, which works whoever calls it."""
        if component not in BLOCKS:
            return
        blocks = list(module.get_submodule(BLOCKS[component]).children())
        for block in blocks:
            fully_shard(block, mesh=self.mesh, reshard_after_forward=True)
        for block, following in itertools.zip_longest(blocks, blocks[1:]):
            block.register_forward_pre_hook(functools.partial(self._gather, component, following))

    def rows(self, tensor: Tensor) -> slice:
        if not isinstance(tensor, DTensor):
            return slice(None)
        return rows_of_rank(tensor.shape[0], self.mesh.size(), self.mesh.get_local_rank())

    def reads(self, like: Tensor) -> slice:
        return self.rows(like)

    def place(self, like: Tensor, read: Callable[[slice], Tensor]) -> Tensor:
        held = read(self.rows(like))
        if not isinstance(like, DTensor):
            return held
        return DTensor.from_local(
            held, self.mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )

    def local(self, tensor: Tensor) -> Tensor:
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor

    def change(self, tensor: Tensor, change: Callable[[Tensor], object], *, anew: bool = False) -> None:
        self._forget_ahead()
        change(self.local(tensor))

    def set_aside(self, names: Sequence[str]) -> None:
        pass

    def released(self, names: Sequence[str]) -> None:
        for name in names:  # without waiting, which after an error may be for ranks that are gone
            self._ahead.pop(name, None)
        if not BLOCKS.keys().isdisjoint(names):
            gc.collect()  # FSDP's records and the modules they belong to refer to each other

    def _gather(self, component: str, following: nn.Module | None, block: nn.Module, inputs: Any) -> None:
        """Start to gather the block that comes after `block`, which is whole by now; its own call waits for it."""
        self._ahead.pop(component, None)
        if following is not None:
            assert isinstance(following, FSDPModule)
            handle = following.unshard(async_op=True)
            assert handle is not None, "asynchronous"
            self._ahead[component] = following, handle

    def _forget_ahead(self) -> None:
        """Of blocks that were gathered and not called: they are of rows that may change."""
        while self._ahead:
            _, (block, handle) = self._ahead.popitem()
            handle.wait()
            block.reshard()


@functools.cache
def _mesh(num_ranks: int, device_type: str) -> DeviceMesh:
    return init_device_mesh(device_type, (num_ranks,))
