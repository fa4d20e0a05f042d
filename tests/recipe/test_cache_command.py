"""`ltxgen cache ls|rm|verify`, on a store with a few small values."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from ltxgen.recipe.state import pack
from ltxgen.recipe.store import Store

KEYS = {
    "aaaa1111" + "0" * 56: ("prompt", 10),
    "aaaa2222" + "0" * 56: ("base", 3 * 86400),
    "bbbb" + "0" * 60: ("refine", 0),
}


@pytest.fixture
def store(tmp_path) -> Store:
    store = Store(tmp_path / "stages")
    for key, (stage, seconds) in KEYS.items():
        store.save(key, pack(torch.zeros(100)), {"stage": stage, "recipe": "two"})
        used = time.time() - seconds
        os.utime(store.path(key), (used, used))
    return store


@pytest.fixture
def cache(run_ltxgen, store, tmp_path):
    return lambda command, *words: run_ltxgen("cache", command, "--folder", str(store.folder), *words, cwd=tmp_path)


def left(store: Store) -> set[str]:
    return {entry.facts()["stage"] for entry in store.entries()}


def test_ls(cache, store):
    listed = cache("ls")
    assert listed.code == 0
    rows = [line.split("│")[1:-1] for line in listed.out.splitlines() if "│" in line]
    assert [[cell.strip() for cell in row][:3] for row in rows] == [
        ["aaaa22220000", "base", "two"],
        ["aaaa11110000", "prompt", "two"],
        ["bbbb00000000", "refine", "two"],
    ]
    assert rows[0][4].strip() == "3 d ago"
    assert listed.out.splitlines()[-1].startswith("3 outputs, ")
    assert listed.out.splitlines()[-1].endswith(f" kB in {store.folder}")


def test_ls_of_nothing(run_ltxgen, tmp_path):
    assert "0 outputs" in run_ltxgen("cache", "ls", "--folder", str(tmp_path / "none"), cwd=tmp_path).out


@pytest.mark.parametrize(
    ("words", "stages"),
    [
        (("bbbb",), {"prompt", "base"}),
        (("aaaa1", "bbbb0"), {"base"}),
        (("--older-than", "2d"), {"prompt", "refine"}),
        (("--older-than", "5s"), {"refine"}),
        (("--all",), set()),
    ],
)
def test_rm(cache, store, words, stages):
    assert cache("rm", *words).code == 0
    assert left(store) == stages


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "say what: KEY ..., --older-than AGE or --all"),
        (("aaaa",), "cache rm = aaaa: is the beginning of several keys"),
        (("bbb",), "cache rm = bbb: is no key"),
        (("cccc",), "cache rm = cccc: is no key"),
        (("--older-than", "2y"), "'2y' is no age such as 90m"),
        (("--everything",), "unrecognized arguments: --everything; see `ltxgen cache --help`"),
    ],
)
def test_rm_of_what_is_not_clear_drops_nothing(cache, store, words, message):
    refused = cache("rm", *words)
    assert refused.code == 2
    assert message in refused.err
    assert len(left(store)) == 3


def test_verify_and_repair(cache, store):
    assert cache("verify").code == 0
    path: Path = store.path(next(iter(KEYS)))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    found = cache("verify")
    assert found.code == 1
    assert f"{path}: is damaged: its checksum is another one" in found.out
    assert "3 outputs read, 1 bad" in found.out
    assert cache("verify", "--repair").code == 1
    assert left(store) == {"base", "refine"}
    assert cache("verify").code == 0


def test_an_unknown_command(run_ltxgen, tmp_path):
    refused = run_ltxgen("cache", "list", cwd=tmp_path)
    assert refused.code == 2
    assert "invalid choice: 'list'" in refused.err
