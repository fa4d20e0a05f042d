"""The ranks of a run: which one this process is, and the process group that joins them."""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

# For a collective whose other ranks never come. Dead ranks are noticed by the launcher, long before.
TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run. `local_rank` counts those of this machine: it is the GPU to use."""

    rank: int
    world_size: int
    local_rank: int

    @property
    def is_main(self) -> bool:
        """Whether this rank writes the output and shows progress."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """`value` of every rank, by rank, on every rank; a collective call for small picklable values."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def from_first(self, value: Any) -> Any:
        """The first rank's `value` on every rank; a collective call for what can be pickled, tensors on the CPU too."""
        if self.world_size == 1:
            return value
        values = [value if self.is_main else None]
        torch.distributed.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]


ONE_PROCESS = Ranks(rank=0, world_size=1, local_rank=0)  # without torch.distributed


def start_ranks() -> Ranks:
    """Join the ranks that a launcher started; the process group is destroyed when the process exits.

    Safe to call again: the jobs of a sweep share one group. The backend depends on the machine and on no config, so
    that ranks with different configs meet and can say so: NCCL for tensors on GPUs and gloo for those on the CPU, and
    gloo alone where there is no GPU.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        return ONE_PROCESS
    from accelerate import PartialState

    has_gpus = torch.cuda.is_available()
    if not PartialState._shared_state:
        atexit.register(stop_ranks)
    state = PartialState(cpu=not has_gpus, backend="cpu:gloo,cuda:nccl" if has_gpus else None, timeout=TIMEOUT)
    return Ranks(state.process_index, state.num_processes, state.local_process_index)


def stop_ranks() -> None:
    """Leave the process group, if there is one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
