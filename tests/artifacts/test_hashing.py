"""Digests that are remembered, and computed beside other work."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from ltxgen.artifacts import hashing
from ltxgen.artifacts.hashing import Hashing, sha256_of


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LTXGEN_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.bin").write_bytes(bytes([number]) * 1000)
    return folder


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files whose bytes were read, by the name of the thread that did it."""
    threads: list[str] = []
    digest = hashing._digest
    monkeypatch.setattr(
        hashing, "_digest", lambda *each: (threads.append(threading.current_thread().name), digest(*each))[1]
    )
    return threads


def test_what_was_computed_beside_is_found(files: Path, read: list[str]):
    with Hashing([files, files / "3.bin"]) as ahead:
        ahead.start()
    assert len(read) >= 5
    assert all(name.startswith("hashing") for name in read)
    count = len(read)
    assert sha256_of(files / "2.bin") == hashlib.sha256(bytes([2]) * 1000).hexdigest()
    lines = "".join(f"{sha256_of(files / f'{n}.bin')}  {n}.bin\n" for n in range(5))
    assert sha256_of(files) == hashlib.sha256(lines.encode()).hexdigest()
    assert len(read) == count
    (files / "2.bin").write_bytes(b"other content")
    assert sha256_of(files / "2.bin") == hashlib.sha256(b"other content").hexdigest()


def test_nothing_is_computed_unless_it_is_started(files: Path, read: list[str]):
    with Hashing([files]):
        pass
    assert read == []


def test_a_cache_folder_that_cannot_be_written_costs_no_second_reading(files: Path, read, monkeypatch):
    monkeypatch.setenv("LTXGEN_CACHE", str(files / "0.bin"))
    with Hashing([files / "1.bin"]) as ahead:
        ahead.start()
    sha256_of(files / "1.bin")
    assert len(read) == 1


def test_an_error_of_the_run_ends_it(files: Path, read: list[str], monkeypatch):
    monkeypatch.setattr(hashing, "CHUNK_BYTES", 1)
    reached = threading.Event()
    update = hashing._digest

    def slow(path: Path, ended: threading.Event) -> str:
        reached.set()
        assert ended.wait(20)
        return update(path, ended)

    monkeypatch.setattr(hashing, "_digest", slow)

    def fails() -> None:
        with Hashing([files]) as ahead:
            ahead.start()
            assert reached.wait(20)
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fails()
    assert not any(thread.name.startswith("hashing") for thread in threading.enumerate())
    assert not (files.parent / "cache" / "sha256.json").exists()
