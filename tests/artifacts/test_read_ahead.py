"""Reading by several threads through a ring of buffers: as it is done for a GPU, here to the CPU."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ltxgen.artifacts import read_ahead, source
from ltxgen.artifacts.artifact import ResolvedArtifact
from ltxgen.artifacts.components import COMPONENTS, BuildOptions, artifact_of
from ltxgen.artifacts.load import Cancelled, Loading, load_component
from ltxgen.artifacts.read_ahead import ByteRange, ReadAhead, cut, joined
from ltxgen.artifacts.safetensors_file import ALL_ROWS, SafetensorsFile
from ltxgen.artifacts.source import FileSource
from ltxgen.config.errors import Refusal
from ltxgen.models.transformer.float8 import Float8Layers

CPU = torch.device("cpu")


def test_neighbours_are_read_as_one_and_large_ranges_in_pieces():
    ranges = [ByteRange(3, 0, 4), ByteRange(3, 4, 4), ByteRange(3, 4, 9), ByteRange(3, 10, 12), ByteRange(4, 12, 13)]
    whole = [ByteRange(3, 0, 9), ByteRange(3, 10, 12), ByteRange(4, 12, 13)]
    assert list(joined(ranges)) == whole
    assert list(cut(whole, 4)) == [
        ByteRange(3, 0, 4),
        ByteRange(3, 4, 8),
        ByteRange(3, 8, 9),
        ByteRange(3, 10, 12),
        ByteRange(4, 12, 13),
    ]
    assert list(joined([])) == []


@pytest.mark.parametrize("piece_bytes", [1, 7, 64, 4096])
@pytest.mark.parametrize("num_buffers", [3, 8])
def test_every_byte_arrives_where_it_belongs(tmp_path: Path, piece_bytes: int, num_buffers: int):
    content = random.Random(0).randbytes(1000)
    (tmp_path / "file").write_bytes(content)
    sizes = [0, 1, 300, 13, 0, 286, 400]
    with (tmp_path / "file").open("rb") as file:
        begins = [sum(sizes[:number]) for number in range(len(sizes))]
        ranges = [ByteRange(file.fileno(), begin, begin + size) for begin, size in zip(begins, sizes, strict=True)]
        order = [ranges[number] for number in (5, 0, 1, 2, 4, 6, 3)]
        with ReadAhead(order, CPU, piece_bytes=piece_bytes, num_buffers=num_buffers) as ahead:
            for each in order:
                found = torch.empty(each.num_bytes, dtype=torch.uint8)
                assert ahead.fill(found)
                assert bytes(found.tolist()) == content[each.begin : each.end]


def test_several_threads_read_and_no_more_than_the_ring_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Nobody takes what was read, so reading stops at the ring's size; meanwhile two reads are under way at once."""
    (tmp_path / "file").write_bytes(bytes(100))
    together = threading.Barrier(2, timeout=20)
    reads: list[str] = []
    preadv = os.preadv

    def reading(*arguments):
        if len(reads) < 2:
            reads.append(threading.current_thread().name)
            together.wait()
        else:
            reads.append(threading.current_thread().name)
        return preadv(*arguments)

    monkeypatch.setattr(read_ahead, "NUM_THREADS", 2)
    monkeypatch.setattr(read_ahead.os, "preadv", reading)
    with (tmp_path / "file").open("rb") as file:
        with ReadAhead([ByteRange(file.fileno(), 0, 100)], CPU, piece_bytes=10, num_buffers=4) as ahead:
            assert ahead.fill(torch.empty(10, dtype=torch.uint8))
        assert all(name.startswith("reading") for name in reads)
        assert 2 <= len(reads) <= 5


def test_a_file_that_got_shorter(tmp_path: Path):
    (tmp_path / "file").write_bytes(bytes(50))
    with (
        (tmp_path / "file").open("rb") as file,
        ReadAhead([ByteRange(file.fileno(), 0, 100)], CPU, piece_bytes=30) as ahead,
    ):
        assert ahead.fill(torch.empty(50, dtype=torch.uint8))
        assert not ahead.fill(torch.empty(1, dtype=torch.uint8))


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> list[ReadAhead]:
    """Read ahead for the CPU too, in small pieces; the readers that were made."""
    made: list[ReadAhead] = []

    def small(ranges, device):
        made.append(ReadAhead(ranges, device, piece_bytes=5000, num_buffers=4))
        return made[-1]

    monkeypatch.setattr(source, "READ_AHEAD_FOR", ("cpu",))
    monkeypatch.setattr(source, "ReadAhead", small)
    return made


def artifact(tiny_set, name: str) -> ResolvedArtifact:
    return ResolvedArtifact(
        name, tiny_set.file(name), place="test", reason="test", config_path=f"artifacts.{name}.path"
    )


@pytest.mark.parametrize("name", COMPONENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_components_are_those_of_plain_reads(tiny_set, ahead, monkeypatch, name: str, dtype: torch.dtype):
    whole = artifact(tiny_set, artifact_of(name))
    options = BuildOptions(float8=Float8Layers(("*.audio_ff.*",)))
    found = load_component(name, whole, CPU, dtype, options).state_dict()
    assert len(ahead) == 1
    assert not ahead[0]._pieces, "all that was read has been taken"
    monkeypatch.setattr(source, "READ_AHEAD_FOR", ())
    wanted = load_component(name, whole, CPU, dtype, options).state_dict()
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert found[key].dtype == tensor.dtype
        assert torch.equal(found[key].float(), tensor.float())


def test_rows_and_unexpected_reads_come_in_between(tiny_set, ahead):
    path = tiny_set.file("checkpoint")
    stored = load_file(path)
    with SafetensorsFile(path) as file:
        matrices = [key for key, info in file.header.tensors.items() if len(info.shape) == 2 and info.shape[0] > 3]
    reads = {key: slice(1, 3) if number % 3 else ALL_ROWS for number, key in enumerate(matrices[:9])}
    reads[matrices[4]] = slice(0, 0)
    with FileSource(path) as opened:
        for key in opened.expect(reads, CPU):
            dtype = stored[key].dtype
            other = opened.read("vae.per_channel_statistics.std-of-means", CPU, torch.float32)
            assert torch.equal(other, stored["vae.per_channel_statistics.std-of-means"].float())
            assert torch.equal(opened.read(key, CPU, dtype, reads[key]), stored[key][reads[key]])
    assert not ahead[0]._pieces


def test_a_file_that_changes_while_it_is_read_is_refused(tiny_set, ahead, tmp_path: Path):
    path = tmp_path / "c.safetensors"
    path.write_bytes(tiny_set.file("checkpoint").read_bytes())
    changed = ResolvedArtifact("checkpoint", path, place="test", reason="test", config_path="artifacts.checkpoint.path")
    loading = Loading("vocoder", changed, CPU, torch.float32)
    os.truncate(path, 300_000)
    with pytest.raises(Refusal, match=r"artifacts.checkpoint.path = .*: ended while vocoder\.\S+ was read"):
        loading.load()


def test_a_cancelled_load_ends_at_once_and_closes_its_file(tiny_set, ahead, monkeypatch):
    closed: list[object] = []
    close = SafetensorsFile.__exit__
    monkeypatch.setattr(SafetensorsFile, "__exit__", lambda self, *error: (closed.append(self), close(self, *error))[1])
    seen: list[str] = []
    loading = Loading(
        "vocoder",
        artifact(tiny_set, "checkpoint"),
        CPU,
        torch.float32,
        on_tensor=lambda key, num_bytes: (seen.append(key), loading.cancel()),
    )
    with pytest.raises(Cancelled):
        loading.load()
    assert len(seen) == 1
    assert len(closed) == 1
    assert not any(thread.name.startswith("reading") for thread in threading.enumerate())
