"""Meshes as configured: which are refused and how, and what shape a stage gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ltxgen import registry
from ltxgen.config.schema import INVALID, parse
from ltxgen.parallel.mesh import MeshConfig
from ltxgen.parallel.shape import MeshShape, Shards

HEADS = {"video": 32, "audio": 32}
FILES = sorted(
    path
    for path in (Path(__file__).parents[2] / "conf/parallel").glob("*.yaml")
    if path.stem not in ("single", "auto", "jobs")
)


@pytest.mark.parametrize(
    ("name", "num_ranks", "shape"),
    [
        ("guidance", 4, MeshShape(guidance=4)),
        ("guidance", 3, MeshShape(guidance=3)),
        ("ulysses", 8, MeshShape(ulysses=8)),
        ("ring", 3, MeshShape(ring=3)),
        ("usp", 8, MeshShape(ring=2, ulysses=4)),
        ("guidance_ulysses", 2, MeshShape(guidance=2)),
        ("guidance_ulysses", 8, MeshShape(guidance=2, ulysses=4)),
    ],
)
def test_the_yaml_files_name_their_meshes(name: str, num_ranks: int, shape: MeshShape):
    config = read(name)
    assert config.problems("parallel", num_ranks, 4, HEADS) == []
    assert config.shape(num_ranks) == shape


def test_every_file_is_a_mesh():
    assert {path.stem for path in FILES} == {"guidance", "ulysses", "ring", "usp", "guidance_ulysses"}
    assert all(yaml.safe_load(path.read_text())["kind"] == "mesh" for path in FILES)
    assert registry.config_of("parallel", "mesh") is MeshConfig


def read(name: str) -> MeshConfig:
    data = yaml.safe_load(next(path for path in FILES if path.stem == name).read_text())
    problems: list[Any] = []
    config = parse(registry.config_of("parallel", data["kind"]), data, "parallel", problems)
    assert config is not INVALID, problems
    return config


@pytest.mark.parametrize(
    ("config", "num_ranks", "path", "value", "message"),
    [
        (
            MeshConfig(guidance=2, ulysses=3),
            8,
            "parallel.guidance",
            2,
            "guidance 2 * ulysses 3 * ring 1 = 6 must equal the 8 processes; leave one axis null to take the rest, or "
            "change num_processes",
        ),
        (
            MeshConfig(guidance=None, ulysses=3),
            8,
            "parallel.ulysses",
            3,
            "ulysses 3 = 3 must divide the 8 processes; leave one axis null to take the rest, or change num_processes",
        ),
        (
            MeshConfig(guidance=None, ring=None),
            8,
            "parallel.ring",
            None,
            "only one axis can be left open, and guidance and ring are; give all but one a number",
        ),
        (
            MeshConfig(ulysses=None),
            6,
            "parallel.ulysses",
            6,
            "must divide this transformer's 32 video and 32 audio heads: one of 1, 2, 4, 8, 16, 32; give the rest to "
            "ring",
        ),
        (
            MeshConfig(guidance=None),
            5,
            "parallel.guidance",
            5,
            "must be at most 4, the passes of a guided step in this recipe; give the rest to ulysses",
        ),
    ],
)
def test_what_cannot_be_is_refused(config: MeshConfig, num_ranks: int, path: str, value: Any, message: str):
    (problem,) = config.problems("parallel", num_ranks, 4, HEADS)
    assert (problem.path, problem.value, problem.message) == (path, value, message)


def test_two_problems_are_told_at_once():
    found = MeshConfig(guidance=5, ulysses=3).problems("parallel", 15, 4, {"video": 32, "audio": 16})
    assert [problem.path for problem in found] == ["parallel.guidance", "parallel.ulysses"]
    assert "32 video and 16 audio heads: one of 1, 2, 4, 8, 16;" in found[1].message


def test_heads_are_not_needed_without_a_checkpoint():
    assert MeshConfig(ulysses=None).problems("parallel", 6, 4, {}) == []


@pytest.mark.parametrize(
    ("shape", "num_passes", "num_heads", "expected"),
    [
        (MeshShape(guidance=4), 4, 32, MeshShape(guidance=4)),
        (MeshShape(guidance=4), 1, 32, MeshShape(ulysses=4)),
        (MeshShape(guidance=3), 4, 32, MeshShape(guidance=3)),
        (MeshShape(guidance=3), 1, 32, MeshShape(ring=3)),
        (MeshShape(guidance=4), 3, 32, MeshShape(guidance=2, ulysses=2)),
        (MeshShape(guidance=4, ulysses=2), 1, 4, MeshShape(ring=2, ulysses=4)),
        (MeshShape(guidance=2, ulysses=2, ring=2), 1, 32, MeshShape(ring=2, ulysses=4)),
        (MeshShape(ulysses=4), 1, 32, MeshShape(ulysses=4)),
        (MeshShape(guidance=2), 0, 32, MeshShape(ulysses=2)),
    ],
)
def test_a_stage_with_fewer_passes_uses_all_ranks(
    shape: MeshShape, num_passes: int, num_heads: int, expected: MeshShape
):
    found = shape.for_passes(num_passes, num_heads)
    assert found == expected
    assert found.num_ranks == shape.num_ranks


def test_shape_as_text():
    assert str(MeshShape(guidance=2, ulysses=4)) == "guidance 2 x ulysses 4"
    assert str(MeshShape()) == "one rank"


@pytest.mark.parametrize(
    ("shards", "piece", "blocks"),
    [
        (Shards(24, 2, 2), 6, (12, 12)),
        (Shards(23, 2, 2), 6, (12, 11)),
        (Shards(18, 4, 1), 5, (5, 5, 5, 3)),
        (Shards(5, 4, 1), 2, (2, 2, 1, 0)),
        (Shards(1, 2, 2), 1, (1, 0)),
        (Shards(1, 1, 4), 1, (1,)),
    ],
)
def test_padding_stands_at_the_end(shards: Shards, piece: int, blocks: tuple[int, ...]):
    assert shards.piece_length == piece
    assert shards.tokens_in_block == blocks
    assert sum(blocks) == shards.num_tokens
