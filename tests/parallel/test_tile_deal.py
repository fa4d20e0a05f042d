"""Tiles over ranks: who decodes which, what the first rank holds at a time, and how a plan tells it."""

from __future__ import annotations

import functools
import weakref
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from ltxgen.models.video_vae import Tile, Tiling, list_tiles
from ltxgen.parallel.tiles import TileDeal, TileParallel, deal_tiles
from ltxgen.recipe.show import _described

LAUNCH = Tiling(spatial_tile_px=512, spatial_overlap_px=64, temporal_tile_frames=64, temporal_overlap_frames=24)


@pytest.mark.parametrize(
    ("costs", "num_ranks", "owners"),
    [
        ([7, 7, 7, 7], 2, (0, 1, 0, 1)),
        ([7, 7, 7], 1, (0, 0, 0)),
        ([7], 4, (0,)),
        ([7, 7, 7], 4, (0, 1, 2)),
        ([5, 7, 7, 7], 2, (1, 0, 1, 0)),
        ([16, 16, 16, 6] * 4, 4, (0, 1, 2, 3, 3, 0, 1, 2, 2, 3, 0, 1, 1, 2, 3, 0)),
        ([9, 1, 5], 2, (0, 1, 1)),  # the last one to the rank with less to do
        ([], 2, ()),
    ],
)
def test_deal(costs: list[int], num_ranks: int, owners: tuple[int, ...]):
    assert deal_tiles(costs, num_ranks) == owners


@pytest.mark.parametrize("num_ranks", range(1, 9))
def test_a_full_size_video_is_dealt_evenly(num_ranks: int):
    """1024x1536, 121 frames: 48 tiles in twelve sizes."""
    tiles = list_tiles((16, 32, 48), LAUNCH)
    deal = TileDeal(tiles, num_ranks, num_ranks)
    owners = deal.owners
    for start in range(0, len(tiles), num_ranks):
        of_round = owners[start : start + num_ranks]
        assert len(set(of_round)) == len(of_round)
    loads = [0] * num_ranks
    for tile, owner in zip(tiles, owners, strict=True):
        frames, height, width = tile.video_size
        loads[owner] += frames * height * width
    assert max(loads) <= sum(loads) / num_ranks * 1.1  # dealt round and round: up to 1.37
    assert sum(deal.counts) == 48
    assert max(deal.counts) - min(deal.counts) <= 1
    assert deal.received_bytes(1) == sum(loads[1:])


def test_without_sharing_the_first_rank_has_all():
    deal = TileDeal(list_tiles((16, 32, 48), LAUNCH), num_ranks=4, num_decoding=1)
    assert deal.counts == [48, 0, 0, 0]
    assert deal.received_bytes(6) == 0


@dataclass
class FirstOfThree:
    """Rank 0 of three, as `Axis` has it. Keeps a diary, and counts the tiles alive."""

    rank: int = 0
    diary: list[str] = field(default_factory=list)
    tiles: list[weakref.ref[Tensor]] = field(default_factory=list)
    most_alive: int = 0

    def made(self, note: str, tile: Tensor) -> Tensor:
        self.diary.append(note)
        self.tiles.append(weakref.ref(tile))
        self.most_alive = max(self.most_alive, sum(each() is not None for each in self.tiles))
        return tile

    def receive(self, into: Tensor, rank: int) -> SimpleNamespace:
        self.diary.append(f"receive from {rank}")
        return SimpleNamespace(wait=lambda: into)


def test_the_first_rank_decodes_while_a_round_arrives_and_holds_no_more():
    tiles = list_tiles((9, 2, 2), Tiling(temporal_tile_frames=16, temporal_overlap_frames=8))
    assert len(tiles) == 8
    axis = FirstOfThree()

    def empty(tile: Tile) -> Tensor:
        return axis.made("empty", torch.full(tile.video_size, tiles.index(tile)))

    def decode(tile: Tile) -> Tensor:
        return axis.made("decode", torch.full(tile.video_size, tiles.index(tile)))

    def number(tile: Tensor) -> int:
        return int(tile[0, 0, 0])

    deal = TileDeal(tiles, num_ranks=3, num_decoding=3)
    assert list(TileParallel(deal, axis).stream(decode, empty, functools.partial(map, number))) == list(range(8))
    assert axis.most_alive == 3
    one, other = [f"receive from {rank}" for rank in (1, 2)]
    assert axis.diary[:5] in (["empty", one, "empty", other, "decode"], ["empty", other, "empty", one, "decode"])


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("tiles", [12], "12 tiles"),
        ("tiles", [1, 0], "1 tile on rank 0"),
        ("tiles", [12, 0, 0, 0], "12 tiles on rank 0"),
        ("tiles", [3, 3, 3, 3], "12 tiles, 3 a rank"),
        ("tiles", [2, 2, 1, 1], "6 tiles, 1 to 2 a rank"),
        (
            "received bytes a step and rank",
            {"ulysses": 12_897_485, "gather": 209_715},
            "ulysses 12.3 MiB, gather 205 KiB received a step and rank",
        ),
        ("received bytes on rank 0", {"tiles": 3 * 2**30}, "tiles 3.0 GiB received on rank 0"),
    ],
)
def test_as_a_plan_tells_it(key: str, value: object, text: str):
    assert _described(key, value) == text
