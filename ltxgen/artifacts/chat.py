"""Finds in the text encoder's folder what it takes to let Gemma write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ltxgen.artifacts.artifact import ResolvedArtifact
from ltxgen.artifacts.tiny import embedded_file
from ltxgen.config.errors import Problem, Refusal
from ltxgen.models.text_encoder.chat_files import chat_template, end_ids

if TYPE_CHECKING:
    from ltxgen.models.text_encoder.chat import Chat


def load_chat(artifact: ResolvedArtifact) -> Chat:
    """Chat template and tokens of the `text_encoder` artifact; the embedded model's for the synthetic source.

    Raises Refusal when the folder has none that can be used; `chat_problems` finds that beforehand.
    """
    from ltxgen.models.text_encoder.chat import Chat  # transformers takes seconds to import

    folder = artifact.path if artifact.path is not None else embedded_file("text_encoder")
    try:
        return Chat.from_folder(folder, artifact.config)
    except (ValueError, OSError) as error:
        raise Refusal([Problem(artifact.config_path, str(folder), str(error))]) from error


def chat_problems(folder: Path) -> list[str]:
    """What a Gemma folder lacks that only writing needs."""
    if not (folder / "tokenizer.json").is_file():
        return ["lacks tokenizer.json, which writing a prompt needs: copy it there, or leave out enhance=gemma"]
    try:
        template, ends = chat_template(folder), end_ids(folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (ValueError, KeyError, TypeError, OSError) as error:
        return [f"holds files that can't be read as what a chat is made with ({error})"]
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
