"""What a Gemma folder says of conversations, read without transformers, which takes seconds to import."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PICTURE_TOKENS = ("boi", "image", "eoi")
"""The tokens of a picture, as config.json's `*_token_index` name them: its beginning, each piece of it, its end."""


def chat_template(folder: Path) -> str | None:
    """The Jinja template of a conversation, from wherever the versions of transformers have kept it; None for none."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for name in ("tokenizer_config.json", "chat_template.json"):
        found = read_json(folder / name).get("chat_template")
        if isinstance(found, list):  # several, by name
            found = {each["name"]: each["template"] for each in found}.get("default")
        if found:
            return str(found)
    return None


def end_ids(folder: Path) -> Sequence[int]:
    """The tokens that end what Gemma says; empty where neither generation_config.json nor config.json names any."""
    for name in ("generation_config.json", "config.json"):
        found = read_json(folder / name).get("eos_token_id")
        if found is not None:
            return [found] if isinstance(found, int) else list(found)
    return []


def picture_ids(folder: Path) -> Mapping[str, int] | None:
    """The ids of `PICTURE_TOKENS`; None where config.json lacks any, as that of a Gemma which sees no pictures."""
    config = read_json(folder / "config.json")
    found = {name: config.get(f"{name}_token_index", config.get(f"{name}_token_id")) for name in PICTURE_TOKENS}
    return found if all(isinstance(each, int) for each in found.values()) else None  # type: ignore[return-value]


def read_json(path: Path) -> Mapping[str, Any]:
    """A JSON object; an empty one where there is no such file. Raises ValueError for what isn't one."""
    if not path.is_file():
        return {}
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} is no JSON object")
    return value
