"""What a Gemma folder must hold to write prompts, and what is told where it doesn't."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from ltxgen.artifacts.chat import chat_problems, chat_template, end_ids, picture_ids


@pytest.fixture
def folder(tiny_set, tmp_path) -> Path:
    return shutil.copytree(tiny_set.file("text_encoder"), tmp_path / "gemma")


def change(path: Path, **values: object) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    content |= {key: value for key, value in values.items() if value is not None}
    path.write_text(json.dumps({key: content[key] for key in content if values.get(key, 0) is not None}))


def test_the_embedded_model_can_write(folder):
    assert chat_problems(folder) == []
    assert end_ids(folder) == [1]
    assert picture_ids(folder) == {"boi": 4, "eoi": 5, "image": 6}


def test_a_template_is_found_wherever_it_was_ever_kept(folder):
    (folder / "chat_template.jinja").unlink()
    assert chat_template(folder) is None
    change(folder / "chat_template.json", chat_template="of the processor")
    assert chat_template(folder) == "of the processor"
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "by name"}]
    change(folder / "tokenizer_config.json", chat_template=named)
    assert chat_template(folder) == "by name"
    (folder / "chat_template.jinja").write_text("a file")
    assert chat_template(folder) == "a file"


def test_ends_of_answers_are_those_of_the_generation_config(folder):
    change(folder / "generation_config.json", eos_token_id=[1, 106])
    assert end_ids(folder) == [1, 106]
    change(folder / "generation_config.json", eos_token_id=7)
    assert end_ids(folder) == [7]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "chat_template.jinja").unlink(), "has no chat template (chat_template.jinja, or"),
        (lambda folder: change(folder / "config.json", eos_token_id=None), "says nowhere what ends an answer"),
        (lambda folder: change(folder / "config.json", tie_word_embeddings=False), "has an LM head of its own"),
        (
            lambda folder: (folder / "generation_config.json").write_text("[]"),
            "can't be read: generation_config.json is",
        ),
    ],
    ids=["template", "end", "head", "json"],
)
def test_what_is_missing_is_told_before_anything_loads(run_ltxgen, tiny_words, folder, spoil, message):
    spoil(folder)
    words = ("plan", *tiny_words, f"artifacts.text_encoder.path={folder}")
    assert run_ltxgen(*words, cwd=folder.parent).code == 0, "without enhance=gemma it does"
    result = run_ltxgen(*words, "enhance=gemma", cwd=folder.parent)
    assert result.code == 2
    assert f"artifacts.text_encoder.path = {folder}: {message}" in result.err
    assert len(result.err.splitlines()) == 1


def test_a_gemma_that_sees_no_pictures(run_ltxgen, tiny_words, folder):
    from PIL import Image

    Image.new("RGB", (64, 64)).save(folder.parent / "a.png")
    change(folder / "config.json", vision_config=None)
    words = (*tiny_words, "enhance=gemma", f"artifacts.text_encoder.path={folder}")
    words = ("plan", *words, "request.images=[{path: a.png}]")
    result = run_ltxgen(*words, cwd=folder.parent)
    assert result.code == 2
    assert "is a Gemma that sees no pictures (no `vision_config`)" in result.err
    assert "stages.enhance.image=false" in result.err
    assert run_ltxgen(*words, "stages.enhance.image=false", cwd=folder.parent).code == 0


def test_weights_of_the_vision_tower_are_checked_where_they_are_needed(run_ltxgen, tiny_words, folder):
    from PIL import Image

    Image.new("RGB", (64, 64)).save(folder.parent / "a.png")
    for shard in folder.glob("*.safetensors"):
        kept = {key: tensor for key, tensor in load_file(shard).items() if "post_layernorm.weight" not in key}
        save_file(kept, shard)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] = {key: each for key, each in index["weight_map"].items() if "post_layernorm.weight" not in key}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    words = ("plan", *tiny_words, "enhance=gemma", f"artifacts.text_encoder.path={folder}")
    assert run_ltxgen(*words, cwd=folder.parent).code == 0
    result = run_ltxgen(*words, "request.images=[{path: a.png}]", cwd=folder.parent)
    assert result.code == 2
    assert "tensors of vision_tower: vision_tower.vision_model.post_layernorm.weight" in result.err
