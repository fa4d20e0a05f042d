"""Values as files: bit for bit, checked, dropped by last use, and shared by processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from ltxgen.diffusion.context import Context, Contexts
from ltxgen.diffusion.noise import NoiseSource
from ltxgen.diffusion.pair import Pair
from ltxgen.media.files import locked
from ltxgen.recipe.state import Packed, pack, unpack
from ltxgen.recipe.store import BadEntry, Store
from ltxgen.stage.decode_audio import Sound

CPU = torch.device("cpu")


def again(value):
    packed = pack(value)
    through_json = Packed(json.loads(json.dumps(packed.structure)), packed.tensors)
    return unpack(through_json, CPU, torch.float32)


def test_values_come_back():
    text = Context(torch.randn(1, 4, 3), torch.randn(1, 4, 2).bfloat16())
    value = {
        "context": Contexts(text, None),
        "sound": Sound(torch.randn(1, 2, 9), 24000),
        "conditions": Pair((torch.tensor(3), 0.1, "x", True), None),
        "fps": [Fraction(24000, 1001), 1e-300, 2**60],
    }
    back = again(value)
    assert back["context"].negative is None
    assert torch.equal(back["context"].positive.video, text.video)
    assert torch.equal(back["context"].positive.audio, text.audio)
    assert back["context"].positive.audio.dtype == torch.bfloat16
    assert torch.equal(back["sound"].waveform, value["sound"].waveform)
    assert back["sound"].sample_rate == 24000
    assert back["conditions"] == value["conditions"]
    assert back["fps"] == value["fps"]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(2, 3, 4).transpose(0, 2),
        torch.randn(1, 3, 1).expand(2, 3, 4),
        torch.randn(4, 6)[:, 1:4],
        torch.randn(1, 3, 5, 5).to(memory_format=torch.channels_last),
        torch.randn(0, 3),
        torch.tensor(1.5),
    ],
    ids=["transposed", "expanded", "sliced", "channels last", "empty", "scalar"],
)
def test_a_tensor_lies_in_memory_as_it_did(tensor: torch.Tensor):
    back = again(tensor)
    assert torch.equal(back, tensor)
    assert (back.stride(), back.dtype) == (tensor.stride(), tensor.dtype)


def test_noise_goes_on_where_it_was():
    noise = NoiseSource(7)
    noise.draw((3,))
    back = again(noise)
    assert torch.equal(back.draw((5,)), noise.draw((5,)))


def test_what_is_no_value():
    with pytest.raises(TypeError, match="Path can't be taken apart"):
        pack({"file": Path("x")})
    with pytest.raises(ValueError, match="unknown type os:stat_result"):
        unpack(Packed({"type": "os:stat_result", "fields": {}}, {}), CPU, torch.float32)
    with pytest.raises(ValueError, match=r"unknown type ltxgen\.recipe\.store:Store"):
        unpack(Packed({"type": "ltxgen.recipe.store:Store", "fields": {"folder": "/"}}, {}), CPU, torch.float32)


def value(number: int, size: int = 4) -> Packed:
    return pack({"tensor": torch.full((size,), float(number)), "number": number})


A, B, C = (letter * 64 for letter in "abc")  # keys are SHA-256


def k(number: int) -> str:
    return f"{number:064x}"


def test_a_store(tmp_path: Path):
    store = Store(tmp_path / "new")
    assert store.load(A) is None
    assert store.entries() == []
    store.save(A, value(1), {"stage": "base"})
    (entry,) = store.entries()
    assert (entry.key, entry.facts()) == (A, {"stage": "base"})
    assert unpack(store.load(A), CPU, torch.float32)["number"] == 1
    store.save(A, value(1), {"stage": "base"})
    assert len(list((tmp_path / "new").iterdir())) == 1
    store.remove(A)
    store.remove(A)
    assert store.load(A) is None


def test_every_damaged_byte_is_seen(tmp_path: Path):
    store = Store(tmp_path)
    store.save(A, value(1), {})
    whole = store.path(A).read_bytes()
    padding = whole.rindex(b"}", 0, whole.index(b"\x00\x00\x80\x3f")) + 1  # spaces that no one reads end the header
    data = len(whole) - 16
    for position in [*range(0, padding, 7), *range(data, len(whole))]:
        store.path(A).write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(BadEntry):
            store.load(A)
    for length in (0, 5, 100, len(whole) - 1):
        store.path(A).write_bytes(whole[:length])
        with pytest.raises(BadEntry):
            store.load(A)
    store.path(A).write_bytes(whole)
    assert store.check(A) is None


def test_a_file_under_another_key_is_not_its_value(tmp_path: Path):
    store = Store(tmp_path)
    store.save(A, value(1), {})
    store.path(A).rename(store.path(B))
    with pytest.raises(BadEntry, match=f"holds {A}"):
        store.load(B)


def test_what_is_used_longest_ago_goes_first(tmp_path: Path):
    size = len(_bytes_of(tmp_path / "one"))
    store = Store(tmp_path / "many", max_bytes=3 * size)
    for number in range(3):
        store.save(k(number), value(number), {})
        os.utime(store.path(k(number)), (1000 + number, 1000 + number))
    assert store.load(k(0)) is not None  # used now
    store.save(k(3), value(3), {})
    assert {entry.key for entry in store.entries()} == {k(0), k(2), k(3)}


def _bytes_of(folder: Path) -> bytes:
    Store(folder).save(k(0), value(0), {})
    return Store(folder).path(k(0)).read_bytes()


def test_what_others_put_there_stays(tmp_path: Path):
    """A folder of models that a recipe names as its cache."""
    (tmp_path / "ltx-2.3-22b-dev.safetensors").write_bytes(b"weights" * 1000)
    store = Store(tmp_path, max_bytes=0)
    store.save(A, value(1), {})
    assert store.entries() == []
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["ltx-2.3-22b-dev.safetensors"]


def test_what_killed_processes_left_half_written_goes(tmp_path: Path):
    store = Store(tmp_path, max_bytes=2**20)
    old, new = tmp_path / ".a.1-x.partial.safetensors", tmp_path / ".b.1-x.partial.safetensors"
    for partial in (old, new):
        partial.write_bytes(b"half")
    os.utime(old, (1000, 1000))
    store.save(C, value(1), {})
    assert [entry.key for entry in store.entries()] == [C]
    assert (old.exists(), new.exists()) == (False, True)


def test_a_full_disk_leaves_what_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = Store(tmp_path)
    store.save(A, value(1), {})

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.save(B, value(2), {})
    assert [path.name for path in tmp_path.iterdir()] == [f"{A}.safetensors"]


KEYS = 6


def _work(folder: Path, number: int) -> None:
    """Save, read and drop for a while; ends with an error if anything read is not what was saved."""
    store = Store(folder, max_bytes=4 * 40_000)
    end = time.monotonic() + 2
    turn = number
    while time.monotonic() < end:
        key = turn % KEYS
        found = store.load(k(key))
        if found is None:
            store.save(k(key), value(key, 10_000), {})
        else:
            assert found.digest() == value(key, 10_000).digest()
        turn += 1 + number


def test_two_processes_share_a_store(tmp_path: Path):
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_work, args=(tmp_path, number)) for number in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    store = Store(tmp_path)
    assert all(store.check(entry.key) is None for entry in store.entries())
    assert 1 <= len(store.entries()) <= KEYS
    assert not list(tmp_path.glob(".*partial*"))


def test_a_lock_is_held_by_one(tmp_path: Path):
    path = tmp_path / "lock"
    with locked(path) as first, locked(path) as second:
        assert (first, second) == (True, False)
    with locked(path) as alone:
        assert alone
        path.unlink()
        with locked(path) as other:  # a new file, which nobody has
            assert other
