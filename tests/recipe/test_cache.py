"""Runs that take outputs of stages from the cache: which stages run, what loads, and that results stay the same."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ltxgen.artifacts import hashing
from ltxgen.recipe import cache as cache_module
from ltxgen.recipe import parts as parts_module
from ltxgen.recipe.cache import StageCache
from ltxgen.recipe.store import Store
from ltxgen.runtime.ranks import ONE_PROCESS

STAGES = ("prompt", "base", "upsample", "refine", "decode_video", "decode_audio", "write")
ALWAYS = {"decode_video", "write"}  # a stream and files
NOTHING = {"base_images", "refine_images"}  # what stages without pictures write is not looked at here


class Lab:
    """Runs into one cache of this test's own."""

    def __init__(self, run_ltxgen: Callable[..., Any], words: Sequence[str], folder: Path) -> None:
        self.run_ltxgen, self.words, self.folder = run_ltxgen, words, folder
        self.store = Store(folder / "cache")
        self.count = 0

    def run(self, *words: str, mode: str = "auto") -> Run:
        self.count += 1
        output = self.folder / f"out{self.count}"
        own = (f"cache={mode}", f"cache.folder={self.store.folder}", f"output.dir={output}")
        result = self.run_ltxgen(*self.words, *own, *words, cwd=self.folder)
        assert result.code == 0, result.err
        return Run(output, result.err)


class Run:
    def __init__(self, folder: Path, said: str) -> None:
        self.folder, self.said = folder, said
        stages = json.loads((folder / "manifest.json").read_text())["stages"]
        self.stages = {name: stage for name, stage in stages.items() if name not in NOTHING}

    @property
    def ran(self) -> set[str]:
        return {name for name, stage in self.stages.items() if stage["from"] == "run"}

    @property
    def video(self) -> bytes:
        return (self.folder / "video.mp4").read_bytes()


@pytest.fixture
def lab(run_ltxgen, tiny_words, tmp_path) -> Lab:
    return Lab(run_ltxgen, tiny_words, tmp_path)


@pytest.fixture(scope="module")
def filled(run_ltxgen, tiny_words, tmp_path_factory) -> tuple[Path, Run]:
    """A cache with one run in it, to be copied, and that run."""
    first = Lab(run_ltxgen, tiny_words, tmp_path_factory.mktemp("filled"))
    return first.store.folder, first.run()


@pytest.fixture
def warm(lab, filled) -> Lab:
    shutil.copytree(filled[0], lab.store.folder)
    return lab


@pytest.fixture
def built(monkeypatch) -> list[str]:
    """Names of the components that were loaded."""
    names: list[str] = []
    start, tokenizer = parts_module.Loading, parts_module.load_tokenizer

    def loading(name: str, *arguments: Any, **options: Any) -> Any:
        names.append(name)
        return start(name, *arguments, **options)

    def load_tokenizer(artifact: Any) -> Any:
        names.append("tokenizer")
        return tokenizer(artifact)

    monkeypatch.setattr(parts_module, "Loading", loading)
    monkeypatch.setattr(parts_module, "load_tokenizer", load_tokenizer)
    return names


def test_the_first_run(filled):
    folder, first = filled
    assert first.ran == set(STAGES)
    entries = {entry.key: entry.facts()["stage"] for entry in Store(folder).entries()}
    stored = {key: name for key, name in entries.items() if name not in NOTHING}
    assert stored == {first.stages[name]["key"]: name for name in STAGES if name not in ALWAYS}
    assert all(re.fullmatch(r"[0-9a-f]{64}", stage["key"]) for stage in first.stages.values())


def test_the_same_again_loads_what_makes_the_file(warm, filled, built):
    again = warm.run()
    assert again.ran == ALWAYS
    assert built == ["video_decoder"]
    assert again.video == filled[1].video
    described = {"seconds", "load_seconds", "loaded_ahead_seconds", "peak_bytes", "from", "resumed after step"}
    for name in STAGES:
        mine, first = (
            {fact: value for fact, value in run.stages[name].items() if fact not in described}
            for run in (again, filled[1])
        )
        assert mine == first


def test_a_sweep_runs_what_changed(warm, built, filled):
    """Two strengths and two seeds: the prompt never again, base once a seed."""
    weaker = warm.run("stages.refine.loras.distilled=0.5")
    assert weaker.ran == {"refine"} | ALWAYS
    assert set(built) == {"transformer", "video_decoder"}
    assert weaker.video != filled[1].video
    seeded = warm.run("request.seed=11")
    assert seeded.ran == set(STAGES) - {"prompt"}
    both = warm.run("request.seed=11", "stages.refine.loras.distilled=0.5")
    assert both.ran == {"refine"} | ALWAYS
    alone = warm.run("request.seed=11", "stages.refine.loras.distilled=0.5", mode="off")
    assert both.video == alone.video


def test_what_nobody_wants_is_not_even_looked_for(warm, filled):
    for name in ("prompt", "base", "upsample"):
        warm.store.remove(filled[1].stages[name]["key"])
    again = warm.run()
    assert again.ran == ALWAYS
    assert again.video == filled[1].video
    assert warm.run("stages.decode_audio.source=refine").ran == {"decode_audio"} | ALWAYS
    assert warm.run("stages.refine.loras.distilled=0.5").ran == {"prompt", "base", "upsample", "refine"} | ALWAYS


@pytest.mark.parametrize("damage", ["a byte", "the end", "everything"])
def test_a_damaged_entry_is_computed_again(warm, filled, damage):
    path = warm.store.path(filled[1].stages["refine"]["key"])
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[-100] ^= 4
    path.write_bytes({"a byte": bytes(damaged), "the end": whole[:-50], "everything": b""}[damage])
    again = warm.run()
    assert again.ran == {"refine"} | ALWAYS
    assert again.video == filled[1].video
    assert f"{path}: is " in again.said
    assert "computed again" in again.said
    assert warm.store.check(path.stem) is None


@pytest.mark.parametrize(
    ("mode", "ran", "stores"),
    [("read", {"refine"} | ALWAYS, False), ("write", set(STAGES), True), ("off", set(STAGES), False)],
)
def test_modes(warm, mode, ran, stores):
    before = len(warm.store.entries())
    assert warm.run("stages.refine.loras.distilled=0.5", mode=mode).ran == ran
    assert len(warm.store.entries()) == before + stores


def test_a_run_that_records_everything_runs_everything(warm, stored_run):
    recorded = warm.run("output.tensors=true")
    assert recorded.ran == set(STAGES)
    assert "every stage runs: output.tensors=true" in recorded.said
    mine, plain = (load_file(folder / "tensors.safetensors") for folder in (recorded.folder, stored_run()))
    assert mine.keys() == plain.keys()
    assert all(torch.equal(mine[name], plain[name]) for name in plain)


def test_results_that_no_stage_takes_are_there(warm, built):
    """Without decoders, refine's latents are what the run is for."""
    assert warm.run("~stages.decode_video", "~stages.decode_audio", "~stages.write").ran == set()
    assert built == []


def test_a_small_limit_keeps_the_last(lab):
    lab.run("cache.max_gib=0.00002", "~stages.decode_video", "~stages.decode_audio", "~stages.write")
    assert {entry.facts()["stage"] for entry in lab.store.entries()} == {"upsample", "refine"}


def test_a_full_disk_stops_the_storing_and_not_the_run(lab, monkeypatch):
    def full(store: Store, *arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Store, "save", full)
    run = lab.run()
    assert run.said.count("No space left on device") == 1
    assert run.ran == set(STAGES)


def test_code_that_changes_misses(warm, monkeypatch):
    facts = cache_module.machine_facts
    monkeypatch.setattr(cache_module, "machine_facts", lambda device: {**facts(device), "code": "other"})
    assert warm.run().ran == set(STAGES)


def test_a_file_that_is_replaced_meanwhile_is_not_stored_under_its_old_name(lab, tiny_set, tmp_path, monkeypatch):
    """Its content was hashed at the start and its tensors are read later."""
    upscaler = tmp_path / "upscaler.safetensors"
    shutil.copy(tiny_set.file("spatial_upscaler"), upscaler)
    from ltxgen.stage.upsample import Upsample

    run = Upsample.run

    def replaced(stage: Upsample, *arguments: Any) -> Mapping[str, Any]:
        changed = bytearray(upscaler.read_bytes())
        changed[-1] ^= 1
        upscaler.write_bytes(bytes(changed))
        return run(stage, *arguments)

    monkeypatch.setattr(Upsample, "run", replaced)
    words = ("artifacts.spatial_upscaler.path=" + str(upscaler), "artifacts.source=files")
    words += tuple(
        f"artifacts.{name}.path={tiny_set.file(name)}" for name in ("checkpoint", "distilled_lora", "text_encoder")
    )
    said = lab.run(*words, "~stages.decode_video", "~stages.write").said
    assert "what upsample made is not stored: the files that it uses, or ltxgen's own, changed meanwhile" in said
    stored = {entry.facts()["stage"] for entry in lab.store.entries()}
    assert stored - NOTHING == {"prompt", "base", "decode_audio"}


def test_a_file_that_is_edited_in_place_misses(lab, tiny_set, tmp_path):
    lora = tmp_path / "style.safetensors"
    shutil.copy(tiny_set.file("distilled_lora"), lora)
    words = ("~stages.decode_video", "~stages.decode_audio", "~stages.write")
    words += (f"artifacts.loras.style.path={lora}", "stages.refine.loras.style=1.0")
    assert "refine" in lab.run(*words).ran
    assert lab.run(*words).ran == set()
    changed = bytearray(lora.read_bytes())
    changed[-1] ^= 1
    lora.write_bytes(bytes(changed))
    assert lab.run(*words).ran == {"refine"}


def test_hashes_are_remembered(warm, monkeypatch):
    """Not a byte of a weight is read again to know that it is the same."""
    warm.run()
    monkeypatch.setattr(hashing, "_digest", lambda path: pytest.fail(f"{path} is hashed again"))
    assert warm.run().ran == ALWAYS


class Toy:
    def __init__(self, reads: tuple[str, ...], writes: tuple[str, ...], makes_stream: bool = False) -> None:
        self.reads, self.writes, self.makes_stream = reads, writes, makes_stream


class Plan:
    device, dtype = torch.device("cpu"), torch.float32

    class recipe:  # noqa: N801 - stands for an object
        name = "toy"


def found(stored: str, **stages: Toy) -> dict[str, bool]:
    """Which stages need not run, and whether their values are taken, where those named in `stored` are there."""

    class Keys(StageCache):
        def _load(self, key: str) -> Any:
            return key if key in stored.split() else None

    keys = {name: name for name in stages}
    cache = Keys(Plan(), lambda: keys, ONE_PROCESS, print, [Store(Path("nowhere"))], [])
    return {name: packed is not None for name, packed in cache._find(stages).items()}


def test_which_stages_need_not_run():
    chain = {
        "a": Toy(("n",), ("n", "a")),
        "b": Toy(("n", "a"), ("n", "b")),
        "c": Toy(("b", "a"), ("c",)),
        "file": Toy(("c",), ()),
    }
    assert found("", **chain) == {}
    assert found("a b c", **chain) == {"a": False, "b": True, "c": True}  # b's generator is a result of the run
    assert found("b c", **chain) == {"a": False, "b": True, "c": True}
    assert found("a c", **chain) == {"a": True, "c": True}
    assert found("c", **chain) == {"c": True}
    assert found("a b", **chain) == {"a": True, "b": True}


def test_a_stream_is_made_and_needs_what_it_is_made_of():
    stages = {"a": Toy((), ("a",)), "s": Toy(("a",), ("s",), makes_stream=True), "file": Toy(("s",), ())}
    assert found("a s file", **stages) == {"a": True}
