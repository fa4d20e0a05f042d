"""The process mesh as one rank sees it, and the collectives of one of its axes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from ltxgen.parallel.shape import MeshShape
from ltxgen.parallel.tally import Communication, Tally, communication

# Its name from torch 2.13 on.
all_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

Move = tuple[Callable[..., Any], Tensor, int]
"""Sending or receiving, of a tensor, to or from a rank."""


@dataclass(frozen=True, eq=False)
class Axis:
    """The ranks that differ from this one in one coordinate; the default is this rank alone.

    What its collectives receive and how long they take is counted in `tally`.
    """

    size: int = 1
    rank: int = 0
    group: dist.ProcessGroup | None = None
    tally: Tally = field(default_factory=Tally)

    @classmethod
    def of_all_ranks(cls, device_type: str) -> Axis:
        """Every rank of the run, all of which call this together: for `send` to the first and `receive` there."""
        world = dist.group.WORLD
        assert world is not None, "all ranks without process group"
        _connect(world, device_type)
        return cls(world.size(), world.rank(), world)

    def all_to_all(self, chunks: Tensor) -> Tensor:
        """Chunk i of (size, ...) goes to rank i; chunk i of the result came from rank i."""
        arrived = torch.empty_like(chunks, memory_format=torch.contiguous_format)
        with self.tally.counting(chunks.device, arrived.nbytes // self.size * (self.size - 1)):
            dist.all_to_all_single(arrived, chunks.contiguous(), group=self.group)
        return arrived

    def all_gather(self, x: Tensor) -> Tensor:
        """Everyone's `x` (...), equal in shape, as (size, ...)."""
        gathered = x.new_empty((self.size, *x.shape))
        with self.tally.counting(x.device, x.nbytes * (self.size - 1)):
            all_gather_single(gathered.flatten(0, 1), x.contiguous(), group=self.group)
        return gathered

    def broadcast(self, x: Tensor, owner: int) -> None:
        """Fill `x`, which is contiguous, with the owner's."""
        with self.tally.counting(x.device, 0 if owner == self.rank else x.nbytes):
            dist.broadcast(x, group_src=owner, group=self.group)

    def pass_on(self, x: Tensor) -> Transfer:
        """Start sending contiguous `x` to the next rank of the ring while the previous one's arrives."""
        arrived = torch.empty_like(x)
        following, preceding = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        return self._start(arrived, (dist.isend, x, following), (dist.irecv, arrived, preceding))

    def send(self, x: Tensor, rank: int) -> Transfer:
        """Start sending contiguous `x`."""
        return self._start(x, (dist.isend, x, rank))

    def receive(self, into: Tensor, rank: int) -> Transfer:
        """Start filling contiguous `into` with what `rank` sends."""
        return self._start(into, (dist.irecv, into, rank))

    def _start(self, result: Tensor, *moves: Move) -> Transfer:
        received = sum(x.nbytes for kind, x, _ in moves if kind is dist.irecv)
        with self.tally.counting(result.device, received):
            operations = [dist.P2POp(kind, x, group=self.group, group_peer=rank) for kind, x, rank in moves]
            return Transfer(result, moves, dist.batch_isend_irecv(operations), self.tally)


@dataclass(frozen=True, eq=False)
class Transfer:
    """A tensor on its way. `moves` holds what is sent until it has left."""

    tensor: Tensor
    moves: Sequence[Move]
    work: list[dist.Work]
    tally: Tally

    def wait(self) -> Tensor:
        with self.tally.counting(self.tensor.device):
            for each in self.work:
                each.wait()
        return self.tensor


@dataclass(frozen=True, eq=False)
class Layout:
    """This rank's axes in one stage; the default is a run of one rank."""

    guidance: Axis = field(default_factory=Axis)
    ring: Axis = field(default_factory=Axis)
    ulysses: Axis = field(default_factory=Axis)
    gathered: Tally = field(default_factory=Tally)
    device_type: str = "cpu"

    @classmethod
    def build(cls, shape: MeshShape, device_type: str) -> Layout:
        """Makes the process groups, or takes those that this process made before for the same shape; counts from 0.

        All ranks call this with the same arguments, in the same order.
        """
        if shape.num_ranks == 1:
            return cls()
        assert dist.is_initialized(), f"{shape} without process group"
        axes = _axes(shape, device_type, dist.group.WORLD)
        guidance, ring, ulysses = (replace(axes[name], tally=Tally()) for name in ("guidance", "ring", "ulysses"))
        return cls(guidance, ring, ulysses, device_type=device_type)

    @property
    def only_axis(self) -> Axis | None:
        """The axis that all ranks of the sequence lie on; None if there are two."""
        return self.ulysses if self.ring.size == 1 else self.ring if self.ulysses.size == 1 else None

    @property
    def gather(self) -> tuple[Axis, Axis]:
        """The sequence's axes, inner one first, for putting it together: counted apart from attention."""
        return replace(self.ulysses, tally=self.gathered), replace(self.ring, tally=self.gathered)

    def counted_with(self, other: Layout) -> Layout:
        """The same axes, whose exchanges count as those of `other`."""
        return Layout(
            replace(self.guidance, tally=other.guidance.tally),
            replace(self.ring, tally=other.ring.tally),
            replace(self.ulysses, tally=other.ulysses.tally),
            other.gathered,
            self.device_type,
        )

    @property
    def communication(self) -> Communication:
        """What was counted on this rank."""
        return communication(self.tallies)

    @property
    def tallies(self) -> dict[str, Tally]:
        """By kind of exchange."""
        of_axes = {"ulysses": self.ulysses.tally, "ring": self.ring.tally}
        return {**of_axes, "gather": self.gathered, "guidance": self.guidance.tally}

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


@functools.cache
def _connect(group: dist.ProcessGroup, device_type: str) -> None:
    """Let every rank send something to the first.

    NCCL connects a group in its first exchange, which all ranks must take part in, and two ranks in their first one,
    in which they stand still until both are there.
    """
    values = torch.zeros(group.size(), 1, device=device_type)
    moves: list[Move] = [(dist.irecv, values[rank], rank) for rank in range(1, group.size())]
    if group.rank() > 0:
        moves = [(dist.isend, values[0], 0)]
    operations = [dist.P2POp(kind, x, group=group, group_peer=rank) for kind, x, rank in moves]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
