"""The tiles of a video, decoded by all ranks and put together by the first.

They are decoded in rounds, of each of which a rank has one tile at most: that is all the first rank ever holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from ltxgen.models.video_vae import Tile
from ltxgen.parallel.axes import Axis, Transfer
from ltxgen.parallel.tally import Communication, communication

COLLECTS = 0  # the rank that puts the tiles together


def deal_tiles(costs: Sequence[int], num_ranks: int) -> tuple[int, ...]:
    """The rank of each tile: the dearest of a round to the rank with the least to do so far, the lowest of equals."""
    loads = [0] * num_ranks
    owners = [COLLECTS] * len(costs)
    for start in range(0, len(costs), num_ranks):
        of_round = range(start, min(start + num_ranks, len(costs)))
        dearest_first = sorted(of_round, key=lambda index: -costs[index])
        idlest_first = sorted(range(num_ranks), key=lambda rank: loads[rank])[: len(of_round)]
        for index, rank in zip(dearest_first, idlest_first, strict=True):
            owners[index] = rank
            loads[rank] += costs[index]
    return tuple(owners)


@dataclass(frozen=True)
class TileDeal:
    """Tiles of one video in the order of `list_tiles`, and who decodes which: the first `num_decoding` of all ranks."""

    tiles: Sequence[Tile]
    num_ranks: int
    num_decoding: int

    @property
    def owners(self) -> tuple[int, ...]:
        return deal_tiles([math.prod(tile.video_size) for tile in self.tiles], self.num_decoding)

    @property
    def counts(self) -> list[int]:
        """How many tiles each rank decodes."""
        owners = self.owners
        return [owners.count(rank) for rank in range(self.num_ranks)]

    def received_bytes(self, bytes_per_pixel: int) -> int:
        """What the first rank receives."""
        others = [tile for tile, owner in zip(self.tiles, self.owners, strict=True) if owner != COLLECTS]
        return bytes_per_pixel * sum(math.prod(tile.video_size) for tile in others)


@dataclass(frozen=True, eq=False)
class TileParallel:
    """What a decoding stage sees of the ranks."""

    deal: TileDeal
    axis: Axis

    def stream(
        self,
        decode: Callable[[Tile], Tensor],
        empty: Callable[[Tile], Tensor],
        join: Callable[[Iterator[Tensor]], Iterator[Tensor]],
    ) -> Iterator[Tensor]:
        """`join` of all decoded tiles, which it takes in order, on the first rank.

        On the others nothing: they decode while the stream is taken to its end. `empty` makes the memory that a decoded
        tile arrives in.
        """
        if self.axis.rank == COLLECTS:
            yield from join(self._in_order(decode, empty))
        else:
            self._send_own(decode)

    @property
    def communication(self) -> Communication:
        """What was counted on this rank."""
        return communication({"tiles": self.axis.tally})

    def _in_order(self, decode: Callable[[Tile], Tensor], empty: Callable[[Tile], Tensor]) -> Iterator[Tensor]:
        tiles, owners = self.deal.tiles, self.deal.owners
        for start in range(0, len(tiles), self.deal.num_decoding):
            of_round = range(start, min(start + self.deal.num_decoding, len(tiles)))
            # The others' tiles arrive while this rank decodes its own.
            others = [index for index in of_round if owners[index] != COLLECTS]
            arriving = {index: self.axis.receive(empty(tiles[index]), owners[index]) for index in others}
            own = {index: decode(tiles[index]) for index in of_round if owners[index] == COLLECTS}
            for index in of_round:
                # Taken out, so that a tile's memory goes with its reader.
                yield own.pop(index) if index in own else arriving.pop(index).wait()

    def _send_own(self, decode: Callable[[Tile], Tensor]) -> None:
        leaving: Transfer | None = None
        for tile, owner in zip(self.deal.tiles, self.deal.owners, strict=True):
            if owner == self.axis.rank:
                decoded = decode(tile).contiguous()
                if leaving is not None:
                    leaving.wait()
                leaving = self.axis.send(decoded, COLLECTS)
        if leaving is not None:
            leaving.wait()
