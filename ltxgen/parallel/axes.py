"""The process mesh as one rank sees it, and the collectives of one of its axes."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from ltxgen.parallel.shape import MeshShape

# Its name from torch 2.13 on.
all_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@dataclass(frozen=True, eq=False)
class Axis:
    """The ranks that differ from this one in one coordinate; the default is this rank alone."""

    size: int = 1
    rank: int = 0
    group: dist.ProcessGroup | None = None

    def all_to_all(self, chunks: Tensor) -> Tensor:
        """Chunk i of (size, ...) goes to rank i; chunk i of the result came from rank i."""
        arrived = torch.empty_like(chunks, memory_format=torch.contiguous_format)
        dist.all_to_all_single(arrived, chunks.contiguous(), group=self.group)
        return arrived

    def all_gather(self, x: Tensor) -> Tensor:
        """Everyone's `x` (...), equal in shape, as (size, ...)."""
        gathered = x.new_empty((self.size, *x.shape))
        all_gather_single(gathered.flatten(0, 1), x.contiguous(), group=self.group)
        return gathered

    def broadcast(self, x: Tensor, owner: int) -> None:
        """Fill `x`, which is contiguous, with the owner's."""
        dist.broadcast(x, group_src=owner, group=self.group)

    def pass_on(self, x: Tensor) -> Arriving:
        """Start sending contiguous `x` to the next rank of the ring while the previous one's arrives."""
        arrived = torch.empty_like(x)
        following, preceding = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        send = dist.P2POp(dist.isend, x, group=self.group, group_peer=following)
        receive = dist.P2POp(dist.irecv, arrived, group=self.group, group_peer=preceding)
        return Arriving(arrived, x, dist.batch_isend_irecv([send, receive]))


@dataclass(frozen=True, eq=False)
class Arriving:
    """A tensor on its way here. `sent` is held until it has left."""

    tensor: Tensor
    sent: Tensor
    work: list[dist.Work]

    def wait(self) -> Tensor:
        for each in self.work:
            each.wait()
        return self.tensor


@dataclass(frozen=True, eq=False)
class Layout:
    """This rank's axes in one stage; the default is a run of one rank."""

    guidance: Axis = field(default_factory=Axis)
    ring: Axis = field(default_factory=Axis)
    ulysses: Axis = field(default_factory=Axis)

    @classmethod
    def build(cls, shape: MeshShape, device_type: str) -> Layout:
        """Makes the process groups, or takes those that an earlier run of this process made of the same shape.

        All ranks call this with the same arguments, in the same order.
        """
        if shape.num_ranks == 1:
            return cls()
        assert dist.is_initialized(), f"{shape} without process group"
        return cls(**_axes(shape, device_type, dist.group.WORLD))

    @property
    def num_shards(self) -> int:
        return self.ring.size * self.ulysses.size

    @property
    def shard(self) -> int:
        """Which piece of the sequence is this rank's: a ring block is the pieces of one Ulysses group, in order."""
        return self.ring.rank * self.ulysses.size + self.ulysses.rank


@functools.cache
def _axes(shape: MeshShape, device_type: str, world: dist.ProcessGroup) -> dict[str, Axis]:
    # Ulysses ranks are neighbours, on one machine if there are several: they exchange the most and can't hide it.
    sizes = {"guidance": shape.guidance, "ring": shape.ring, "ulysses": shape.ulysses}
    mesh = init_device_mesh(device_type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))
    return {
        name: Axis(size, mesh.get_local_rank(name), mesh.get_group(name)) if size > 1 else Axis()
        for name, size in sizes.items()
    }
