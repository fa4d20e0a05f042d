"""Several processes and one cache: sweeps over the same jobs at once, entries dropped and checked under their hands."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from children import ended, started

from ltxgen.artifacts.cache_folder import cache_folder
from ltxgen.recipe.cache import stages_folder
from ltxgen.recipe.resume import forget_runs
from ltxgen.recipe.store import Store

# Lossless, so that the last bit of a latent can show in the video.
SWEEP = ("stages.refine.loras.distilled=0.5,1.0", "request.seed=1,2", "stages.write.crf=0", "cache=auto")
JOBS = 4
RESULTS = ("contact_sheet.png", "recipe.yaml", "video.mp4")


def results(sweep: Path) -> dict[str, bytes]:
    """The files that people look at; there is nothing else, hidden or not, than what a sweep leaves."""
    assert {path.name for path in sweep.iterdir()} == {".sweep", *map(str, range(JOBS)), "index.html", "sweep.json"}
    found = {}
    for number in range(JOBS):
        folder = sweep / str(number)
        assert {path.name for path in folder.iterdir()} == {*RESULTS, "manifest.json"}
        found |= {f"{number}/{name}": (folder / name).read_bytes() for name in RESULTS}
    return found


@pytest.fixture
def own_cache(tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, in which not even the embedded model is made yet."""
    monkeypatch.setenv("LTXGEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def undisturbed(run_ltxgen, tiny_words, tmp_path_factory) -> tuple[dict[str, bytes], dict[str, str]]:
    """The files of the sweep that ran alone, and the digest of every output that it stored."""
    folder = tmp_path_factory.mktemp("undisturbed")
    words = (*tiny_words, *SWEEP, f"cache.folder={folder / 'stages'}", f"output.dir={folder / 'out'}")
    assert run_ltxgen("-m", *words, cwd=folder).code == 0
    return results(folder / "out"), digests(Store(folder / "stages"))


def digests(store: Store) -> dict[str, str]:
    return {entry.key: store.load(entry.key).digest() for entry in store.entries()}


@pytest.fixture
def sweeping(run_ltxgen, tiny_words, tmp_path: Path) -> Callable[..., int]:
    """`sweeping("a")`: the sweep into the folder `a`, begun in a process of its own that prints into `a.log`."""

    def begun(name: str, *words: str) -> int:
        def work() -> int:
            result = run_ltxgen("-m", *tiny_words, *SWEEP, *words, f"output.dir={tmp_path / name}", cwd=tmp_path)
            (tmp_path / f"{name}.log").write_text(result.err)
            return result.code

        return started(work)

    return begun


def check(tmp_path: Path, undisturbed: tuple[dict[str, bytes], dict[str, str]]) -> Store:
    """Both sweeps gave what one gives alone, nothing half-written was met or left."""
    said = [(tmp_path / f"{name}.log").read_text() for name in "ab"]
    assert not any(word in text for text in said for word in ("computed again", "no longer stored", "can't be")), said
    files, outputs = undisturbed
    assert results(tmp_path / "a") == files
    assert results(tmp_path / "b") == files
    store = Store(stages_folder())
    left = digests(store)
    assert left == {key: outputs[key] for key in left}
    assert list(left_half_written(cache_folder())) == []
    assert forget_runs() == 0
    return store


def left_half_written(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob(".*") if not path.name.endswith(".lock"))


def test_two_sweeps_at_once(sweeping, own_cache: Path, tmp_path: Path, undisturbed):
    children = [sweeping(name) for name in "ab"]
    assert [ended(child) for child in children] == [0, 0]
    store = check(tmp_path, undisturbed)
    assert {entry.key for entry in store.entries()} == set(undisturbed[1])


def test_two_sweeps_whose_outputs_are_dropped_meanwhile(
    sweeping, run_ltxgen, own_cache: Path, tmp_path: Path, undisturbed
):
    """By a limit that holds two of nineteen outputs, and by commands that drop, list and check them all the time."""
    children = [sweeping(name, "cache.max_gib=0.00002") for name in "ab"]

    def meddle() -> int:
        while not (tmp_path / "stop").exists():
            for words in (("verify",), ("ls",), ("rm", "--older-than", "0s"), ("verify",), ("rm", "--all")):
                result = run_ltxgen("cache", *words, cwd=tmp_path)
                if result.code:
                    (tmp_path / "meddler.log").write_text(f"{words}: {result.out} {result.err}")
                    return result.code
                time.sleep(0.005)
        return 0

    meddler = started(meddle)
    codes = [ended(child) for child in children]
    (tmp_path / "stop").touch()
    meddled = ended(meddler)
    with suppress(FileNotFoundError):
        pytest.fail((tmp_path / "meddler.log").read_text())
    assert (codes, meddled) == ([0, 0], 0)
    check(tmp_path, undisturbed)
