"""Loads the tokenizer from the text encoder's folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ltxgen.artifacts.artifact import ResolvedArtifact
from ltxgen.artifacts.tiny import embedded_file
from ltxgen.config.errors import Problem, Refusal

if TYPE_CHECKING:
    from ltxgen.models.text_encoder.tokenizer import GemmaTokenizer


def load_tokenizer(artifact: ResolvedArtifact, max_length: int = 1024) -> GemmaTokenizer:
    """The tokenizer of the `text_encoder` artifact; the embedded model's for the synthetic source.

    Raises Refusal when the folder has none that can be used.
    """
    from ltxgen.models.text_encoder.tokenizer import GemmaTokenizer  # transformers takes seconds to import

    folder = artifact.path if artifact.path is not None else embedded_file("text_encoder")
    try:
        return GemmaTokenizer.from_folder(folder, max_length)
    except (ValueError, OSError) as error:
        raise Refusal([Problem(artifact.config_path, str(folder), str(error))]) from error
