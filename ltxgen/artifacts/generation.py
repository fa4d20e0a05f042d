"""Which model generation a file belongs to. Latent spaces, LoRAs and upscalers of generations don't mix."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltxgen.artifacts.artifact import ResolvedArtifact
from ltxgen.artifacts.safetensors_file import BadFile

_NAME = re.compile(r"ltx-(\d+(?:\.\d+)?)-", re.IGNORECASE)
_EARLIER_OR_UNSAID = ("", "2", "2.0")


def generation_of_model(model_version: str, config: Mapping[str, Any]) -> str:
    """`LTX-2`, `LTX-2.3`, `LTX-2.5`, ... of a checkpoint, from its metadata.

    A version that says 2.0 or nothing doesn't decide: checkpoints converted by others lose it, so the architecture's
    own switch does (`cross_attention_adaln` came with 2.3).
    """
    version = ".".join(re.findall(r"\d+", model_version)[:2])
    if version not in _EARLIER_OR_UNSAID:
        return f"LTX-{version}"
    transformer = config.get("transformer")
    is_23 = isinstance(transformer, Mapping) and bool(transformer.get("cross_attention_adaln"))
    return "LTX-2.3" if is_23 else "LTX-2"


def generation_of_name(name: str) -> str | None:
    """Generation told by a published file name such as `ltx-2-19b-dev.safetensors`; None for any other name."""
    match = _NAME.search(name)
    return f"LTX-{match[1].removesuffix('.0')}" if match else None


def generation_of_file(path: Path) -> str | None:
    """Generation of a safetensors file: its metadata where it describes a transformer, its name otherwise.

    None when neither tells, also for a folder and for a file that can't be read (checks report that with its reason).
    """
    if path.is_dir():
        return None
    artifact = ResolvedArtifact("", path, place="", reason="")
    try:
        if "transformer" in artifact.config:
            return generation_of_model(artifact.metadata.get("model_version", ""), artifact.config)
    except BadFile:
        return generation_of_name(path.name)
    return generation_of_name(path.name)
