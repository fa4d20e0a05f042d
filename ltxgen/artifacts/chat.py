"""Finds in the text encoder's folder what it takes to let Gemma write."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltxgen.artifacts.artifact import ResolvedArtifact
from ltxgen.artifacts.tiny import embedded_file
from ltxgen.config.errors import Problem, Refusal

if TYPE_CHECKING:
    from ltxgen.models.text_encoder.chat import Chat

# Gemma 3's, where config.json doesn't say.
PICTURE_IDS: Mapping[str, int] = {"boi": 255_999, "image": 262_144, "eoi": 256_000}


def load_chat(artifact: ResolvedArtifact) -> Chat:
    """Chat template and tokens of the `text_encoder` artifact; the embedded model's for the synthetic source.

    Raises Refusal when the folder has none that can be used; `chat_problems` finds that beforehand.
    """
    from ltxgen.models.text_encoder.chat import Chat  # transformers takes seconds to import
    from ltxgen.models.text_encoder.tokenizer import special_token

    folder = artifact.path if artifact.path is not None else embedded_file("text_encoder")
    if problems := chat_problems(folder):
        raise Refusal([Problem(artifact.config_path, str(folder), problem) for problem in problems])
    template = chat_template(folder)
    assert template is not None, "chat_problems"
    names = _read_json(folder / "tokenizer_config.json")
    tokens = {f"{role}_token": special_token(names, f"{role}_token", f"<{role}>") for role in ("bos", "eos", "pad")}
    tokenizer = str(folder / "tokenizer.json")
    return Chat.build(tokenizer, template, tokens, end_ids(folder), picture_ids(folder), artifact.config)


def chat_problems(folder: Path) -> list[str]:
    """What a Gemma folder lacks that only writing needs."""
    if not (folder / "tokenizer.json").is_file():
        return ["lacks tokenizer.json, which writing a prompt needs: copy it there, or leave out enhance=gemma"]
    try:
        template, ends, config = chat_template(folder), end_ids(folder), _read_json(folder / "config.json")
    except (ValueError, KeyError, TypeError) as error:
        return [f"can't be read: {error}"]
    problems = []
    if template is None:
        problems.append(
            "has no chat template (chat_template.jinja, or `chat_template` in tokenizer_config.json): take an "
            "instruction-tuned Gemma (`-it`), or leave out enhance=gemma"
        )
    if not ends:
        problems.append(
            "says nowhere what ends an answer (`eos_token_id` in generation_config.json or config.json): copy "
            "generation_config.json there, or leave out enhance=gemma"
        )
    if config.get("tie_word_embeddings", True) is False:
        problems.append("has an LM head of its own, must have one tied to its embedding: leave out enhance=gemma")
    return problems


def chat_template(folder: Path) -> str | None:
    """The Jinja template of a conversation, from wherever the versions of transformers have kept it; None for none."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for name in ("tokenizer_config.json", "chat_template.json"):
        found = _read_json(folder / name).get("chat_template")
        if isinstance(found, list):  # several, by name
            found = {each["name"]: each["template"] for each in found}.get("default")
        if found:
            return str(found)
    return None


def end_ids(folder: Path) -> Sequence[int]:
    """The tokens that end what Gemma says; empty where neither generation_config.json nor config.json names any."""
    for name in ("generation_config.json", "config.json"):
        found = _read_json(folder / name).get("eos_token_id")
        if found is not None:
            return [found] if isinstance(found, int) else list(found)
    return []


def picture_ids(folder: Path) -> Mapping[str, int]:
    """The tokens where a picture begins, of each piece of it, and where it ends."""
    config = _read_json(folder / "config.json")
    found = {name: config.get(f"{name}_token_index", config.get(f"{name}_token_id")) for name in PICTURE_IDS}
    return {name: PICTURE_IDS[name] if id_ is None else id_ for name, id_ in found.items()}


def _read_json(path: Path) -> Mapping[str, Any]:
    """A JSON object; an empty one where there is no such file. Raises ValueError for what isn't one."""
    if not path.is_file():
        return {}
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} is no JSON object")
    return value
