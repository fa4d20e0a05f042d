"""The registry: YAML says `kind: name` and fields; here the name finds its config dataclass.

A component is one file `ltxgen/<group>/<kind>.py`. In it a frozen dataclass, whose fields are the YAML's, stands
beside the thing it builds:

    @register("sampler", "euler")
    @dataclass(frozen=True)
    class EulerConfig:
        def build(self) -> Euler: ...

Looking a kind up imports that one file and nothing else. A recipe can name kinds but never code (`_target_`), so a
recipe from a stranger can choose among what is installed and run nothing of its own.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

_CONFIGS: dict[tuple[str, str], type] = {}
_Config = TypeVar("_Config", bound=type)


def register(group: str, kind: str) -> Callable[[_Config], _Config]:
    """Class decorator: make this config dataclass the meaning of `kind` in `group`."""

    def add(config: _Config) -> _Config:
        taken = _CONFIGS.get((group, kind))
        assert taken is None or taken.__qualname__ == config.__qualname__, f"{group}/{kind} is registered twice"
        _CONFIGS[group, kind] = config
        config.kind = kind  # type: ignore[attr-defined]
        return config

    return add


def kinds(group: str) -> tuple[str, ...]:
    """The kinds that `group` offers, without importing them: the files that register themselves under their name."""
    return tuple(sorted(_registering_files(group) | {kind for (owner, kind) in _CONFIGS if owner == group}))


def config_of(group: str, kind: str) -> type:
    """The config dataclass of `kind`; KeyError when `group` has no such kind."""
    if (group, kind) not in _CONFIGS:
        if kind not in kinds(group):
            raise KeyError(kind)
        importlib.import_module(f"ltxgen.{group}.{kind}")
    return _CONFIGS[group, kind]


@functools.cache
def _registering_files(group: str) -> frozenset[str]:
    """Other files of the folder (the protocol, what several kinds share) don't call `register`."""
    package = importlib.util.find_spec(f"ltxgen.{group}")
    assert package is not None, f"no group {group}"
    files = (file for folder in package.submodule_search_locations or () for file in Path(folder).glob("*.py"))
    return frozenset(
        file.stem for file in files if f'@register("{group}", "{file.stem}")' in file.read_text(encoding="utf-8")
    )
