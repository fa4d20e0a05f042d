"""Prompts that Gemma writes: off by default, recorded so that a replay lets nobody write, stored as others are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import ltxgen
from ltxgen.config import compose
from ltxgen.config.recipe import parse_recipe
from ltxgen.diffusion.noise import NoiseSource
from ltxgen.media.provenance import read_provenance
from ltxgen.recipe.keys import machine_facts, stage_keys
from ltxgen.recipe.plan import Plan, make_plan
from ltxgen.recipe.specs import component_names
from ltxgen.recipe.state import pack
from ltxgen.stage.enhance_prompt import cleaned

ON = ("enhance=gemma", "stages.enhance.max_new_tokens=12")
PROMPT = "a cat, <eos> {{ 7 * 7 }} \"quoted\" 'twice'; then: [red]it runs[/]"
RECIPES = sorted(compose.recipe_files())


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def recipe(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "recipe.yaml").read_text())


@pytest.fixture
def no_writer(monkeypatch):
    def forbidden(*arguments, **options):
        raise AssertionError("Gemma was to write")

    monkeypatch.setattr("ltxgen.models.text_encoder.answer.answer", forbidden)
    monkeypatch.setattr("ltxgen.recipe.parts.load_chat", forbidden)


@pytest.fixture(scope="module")
def enhanced(stored_run) -> Path:
    return stored_run(*ON, f"request.prompt={PROMPT}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("given")
    for name, shade in (("a.png", 30), ("b.png", 200)):
        Image.new("RGB", (64, 64), (shade, 90, 20)).save(folder / name)
    (folder / "style.txt").write_text("Write as a playwright would.")
    (folder / "other.txt").write_text("Write as a poet would.")
    return folder


@pytest.fixture
def planned(tiny_set, offline, tiny_words, folder, monkeypatch):
    monkeypatch.chdir(folder)
    return lambda *words: make_plan(parse_recipe(compose.compose_config([*tiny_words, *words])))


def test_off_by_default(planned, stored_run):
    plan = planned()
    assert "enhance" not in plan.stages
    assert not {"chat", "vision_tower"} & set(component_names(plan.stages))
    assert plan.stages["prompt"].reads == ()
    assert manifest(stored_run())["request"]["original_prompt"] is None
    assert manifest(stored_run())["request"]["prompt"] == plan.recipe.request.prompt


@pytest.mark.parametrize("name", RECIPES)
def test_one_word_turns_it_on_for_any_recipe(name, tiny_set, offline):
    config = compose.compose_config([f"+recipe={name}", "model=ltx23_tiny", *ON])
    assert next(iter(config["stages"])) == "enhance"
    plan = make_plan(parse_recipe(config))
    assert not [problem for problem in plan.problems if not problem.path.startswith("request.")]
    assert plan.stages["prompt"].reads == ("enhance.prompt",)


def test_what_a_run_records(run_ltxgen, enhanced):
    made, locked = manifest(enhanced), recipe(enhanced)
    text = made["request"]["prompt"]
    assert text != PROMPT
    assert text[0].isalpha()
    assert made["request"]["original_prompt"] == PROMPT
    assert made["stages"]["enhance"]["tokens"] == 12
    assert made["stages"]["enhance"]["cut off"] is True
    assert made["stages"]["prompt"]["prompts"]["positive"] == text
    assert locked["request"]["prompt"] == text
    assert locked["request"]["original_prompt"] == PROMPT
    assert "enhance" not in locked["stages"]
    assert read_provenance(enhanced / "video.mp4").recipe == (enhanced / "recipe.yaml").read_text()
    shown = run_ltxgen("show", str(enhanced / "video.mp4"), cwd=enhanced.parent).out
    assert f"made from: {PROMPT[:40]}" in shown


def test_a_replay_lets_nobody_write(run_ltxgen, enhanced, no_writer, tmp_path):
    result = run_ltxgen("replay", str(enhanced), "--check", cwd=tmp_path)
    assert result.code == 0, result.err
    assert result.out.startswith("bit-equal: picture, sound, ")
    again = run_ltxgen(f"+recipe={enhanced / 'recipe.yaml'}", "output.dir=again", "cache=off", cwd=tmp_path)
    assert again.code == 0, again.err
    for name in ("recipe.yaml", "video.mp4"):
        assert (tmp_path / "again" / name).read_bytes() == (enhanced / name).read_bytes()
    assert manifest(tmp_path / "again")["request"] == manifest(enhanced)["request"]


def test_the_text_is_what_the_prompt_is_encoded_from(stored_run, enhanced):
    given = manifest(enhanced)["request"]["prompt"]
    plain = load_file(stored_run(f"request.prompt='{_escaped(given)}'") / "tensors.safetensors")
    for name, tensor in load_file(enhanced / "tensors.safetensors").items():
        assert torch.equal(tensor, plain[name]), name


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")


def test_seeds_of_a_sweep_share_one_text_that_is_written_once(run_ltxgen, tiny_words, tmp_path, monkeypatch):
    words = (*tiny_words[:-1], *ON, f"cache.folder={tmp_path / 'stages'}", "output.dir=sweep")
    result = run_ltxgen("-m", *words, "request.seed=1,2", cwd=tmp_path)
    assert result.code == 0, result.err
    first, second = (tmp_path / "sweep" / str(number) for number in range(2))
    assert [manifest(each)["stages"]["enhance"]["from"] for each in (first, second)] == ["run", "cache"]
    assert manifest(second)["stages"]["prompt"]["from"] == "cache", "nobody wanted the text, and it is recorded"
    assert recipe(first)["request"] | {"seed": 2} == recipe(second)["request"]
    assert recipe(second)["request"]["original_prompt"] == manifest(first)["request"]["original_prompt"]


def test_its_own_seed_makes_another_text(stored_run, enhanced):
    other = stored_run(*ON, f"request.prompt={PROMPT}", "stages.enhance.seed=1")
    assert manifest(other)["request"]["prompt"] != manifest(enhanced)["request"]["prompt"]


def test_a_picture_is_seen(run_ltxgen, tiny_words, folder):
    words = (*tiny_words[:-1], *ON, f"cache.folder={folder / 'stages'}")
    texts = {}
    seen = "request.images=[{path: a.png}]"
    for name, given in (("words", ()), ("seen", (seen,)), ("unseen", (seen, "stages.enhance.image=false"))):
        result = run_ltxgen(*words, *given, f"output.dir={name}", cwd=folder)
        assert result.code == 0, result.err
        texts[name] = manifest(folder / name)["request"]["prompt"]
    assert texts["unseen"] == texts["words"] != texts["seen"]


def keys_of(plan: Plan) -> dict[str, str]:
    noise = NoiseSource(plan.recipe.request.seed, dtype=plan.dtype)
    return stage_keys(plan, {"noise": pack(noise).digest()}, [machine_facts(plan.device)])


@pytest.mark.parametrize(
    ("word", "changes"),
    [
        ("request.prompt='another'", True),
        ("stages.enhance.seed=1", True),
        ("stages.enhance.temperature=0", True),
        ("stages.enhance.max_new_tokens=13", True),
        ("stages.enhance.image_to_video='another'", True),
        ("stages.enhance.image=false", True),
        ("request.images=[{path: b.png}]", True),
        ("request.instructions.path=style.txt", True),
        ("request.seed=11", False),
        ("request.width=128", False),
        ("stages.base.steps=3", False),
        ("request.negative_prompt='another'", False),
        ("request.original_prompt='another'", False),
    ],
)
def test_what_a_text_is_stored_under(planned, word, changes):
    words = (*ON, "request.images=[{path: a.png}]")
    before, after = keys_of(planned(*words)), keys_of(planned(*words, word))
    assert (before["enhance"] != after["enhance"]) == changes
    if changes:
        assert before["prompt"] != after["prompt"]


def test_instructions_count_by_content_and_stay_behind(planned, run_ltxgen, tiny_words, folder):
    style, other = (keys_of(planned(*ON, f"request.instructions.path={name}.txt")) for name in ("style", "other"))
    assert style["enhance"] != other["enhance"]
    words = (*tiny_words, *ON, "request.instructions.path=style.txt", "output.dir=styled")
    assert run_ltxgen(*words, cwd=folder).code == 0
    assert recipe(folder / "styled")["request"]["instructions"] == {"path": None}
    assert not (folder / "styled" / "inputs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (ON[:1], "request.instructions.path = none.txt: can't be read (No such file or directory); give a text of 1"),
        ((), "request.instructions.path = none.txt: no stage of this recipe takes it; leave it out, or add enhance=ge"),
        ((*ON, "stages.enhance.top_p=0"), "stages.enhance.top_p = 0: must be greater than 0, and at most 1"),
        ((*ON, "stages.enhance.temperature=-1"), "stages.enhance.temperature = -1: must be at least 0"),
        (("enhance=gema",), "enhance = gema: no such choice; there are gemma, none; did you mean 'gemma'?"),
    ],
)
def test_what_is_refused(run_ltxgen, tiny_words, folder, words, message):
    result = run_ltxgen("plan", *tiny_words, "request.instructions.path=none.txt", *words, cwd=folder)
    assert result.code == 2
    assert message in result.err


@pytest.mark.parametrize(("name", "content"), [("empty", b" \n"), ("bytes", b"\xff\xfe\x00")])
def test_instructions_that_are_no_text(run_ltxgen, tiny_words, folder, name, content):
    (folder / name).write_bytes(content)
    result = run_ltxgen("plan", *tiny_words, *ON, f"request.instructions.path={name}", cwd=folder)
    assert result.code == 2
    assert f"request.instructions.path = {name}: " in result.err
    assert "give a text of 1 to 32768 characters" in result.err


def test_a_gemma_that_writes_no_word(run_ltxgen, tiny_words, tmp_path, monkeypatch):
    monkeypatch.setattr("ltxgen.models.text_encoder.chat.Chat.text", lambda self, ids: " 12, --\n")
    result = run_ltxgen(*tiny_words, *ON, cwd=tmp_path)
    assert result.code == 2
    assert "stages.enhance: Gemma wrote no word; try another seed (stages.enhance.seed=1), or" in result.err


def test_from_python(tiny_words, tiny_set, offline):
    with ltxgen.load(tiny_words[0].removeprefix("+recipe="), [*tiny_words[1:], *ON]) as pipeline:
        first, second = (pipeline.run({"prompt": "a cat", "seed": seed}) for seed in (1, 2))
    assert first.manifest["request"]["prompt"] == second.manifest["request"]["prompt"] != "a cat"
    assert not torch.equal(first.frames, second.frames)


@pytest.mark.parametrize(
    ("said", "prompt"),
    [
        ("**\u201cA cat\u201d** runs \u2013 it\u2019s fast\u2026", "A cat\"** runs - it's fast..."),
        (" 1. \u00c9toile\u00a0du\u202fnord ", "\u00c9toile du nord"),
        ("a\tb\r\nc\x00\x1b[31m\u202e\ufffd", "a b \nc[31m"),
        ("\u732b\u304c\u8d70\u308b", "\u732b\u304c\u8d70\u308b"),
        ("5\u2032 \u2212 3\u2033", ""),
    ],
)
def test_what_is_made_of_an_answer(said, prompt):
    assert cleaned(said) == prompt
