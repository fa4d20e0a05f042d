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

import importlib
import pkgutil
from collections.abc import Callable
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
    """The kinds that `group` offers, read from its file names without importing them."""
    package = importlib.import_module(f"ltxgen.{group}")
    found = {module.name for module in pkgutil.iter_modules(package.__path__) if module.name not in _NOT_KINDS}
    return tuple(sorted(found | {kind for (owner, kind) in _CONFIGS if owner == group}))


def config_of(group: str, kind: str) -> type:
    """The config dataclass of `kind`; KeyError when `group` has no such kind."""
    if (group, kind) not in _CONFIGS:
        if kind not in kinds(group):
            raise KeyError(kind)
        importlib.import_module(f"ltxgen.{group}.{kind}")
    return _CONFIGS[group, kind]


# Files that stand in a component's folder without being one: the protocol its components follow.
_NOT_KINDS = frozenset({"protocol"})
