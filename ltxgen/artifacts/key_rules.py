"""Names of a component's tensors: in the file that it is cut from, and in its module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class KeyRules(Protocol):
    """Names of a component's tensors in its file and in its module."""

    def module_key(self, file_key: str) -> str | None:
        """None for a tensor that doesn't belong to the component."""

    def file_key(self, module_key: str) -> str: ...


@dataclass(frozen=True)
class Prefixes:
    """Pairs of (prefix in the file, prefix in the module), first match counts; a whole key can stand for a prefix.

    `excluded` prefixes belong to other components although one of ours starts them.
    """

    pairs: tuple[tuple[str, str], ...]
    excluded: tuple[str, ...] = ()

    def module_key(self, file_key: str) -> str | None:
        if file_key.startswith(self.excluded):
            return None
        for in_file, in_module in self.pairs:
            if file_key.startswith(in_file):
                return in_module + file_key.removeprefix(in_file)
        return None

    def file_key(self, module_key: str) -> str:
        # The longest module prefix wins: the bare "" fits every key.
        in_file, in_module = max(
            (pair for pair in self.pairs if module_key.startswith(pair[1])), key=lambda pair: len(pair[1])
        )
        return in_file + module_key.removeprefix(in_module)


@dataclass(frozen=True)
class PartOf:
    """Those of a component's tensors that `belongs` picks by their key in the module; the file may hold all."""

    whole: KeyRules
    belongs: Callable[[str], bool]

    def module_key(self, file_key: str) -> str | None:
        key = self.whole.module_key(file_key)
        return key if key is not None and self.belongs(key) else None

    def file_key(self, module_key: str) -> str:
        return self.whole.file_key(module_key)


@dataclass(frozen=True)
class GemmaKeys:
    """Gemma files come with several prefixes; the text encoder's own table knows them."""

    def module_key(self, file_key: str) -> str | None:
        from ltxgen.models.text_encoder.layout import state_dict_key

        return state_dict_key(file_key)

    def file_key(self, module_key: str) -> str:
        return f"language_model.{module_key}"
