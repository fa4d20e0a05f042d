"""Recipes as Hydra sees them: found by name or path, read without letting them run code."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ltxgen.config.compose.folders import recipe_files
from ltxgen.config.errors import Problem, Refusal
from ltxgen.config.inputs import beside, check_size, with_paths
from ltxgen.config.launcher import register_sweeps


class RecipesByPath(metaclass=Singleton):
    """Recipe files that were given by path, by the names that stand for them.

    A singleton of Hydra's: what these hold goes along to the processes of its launchers.
    """

    def __init__(self) -> None:
        self.files: dict[str, Path] = {}


class RecipeSource(ConfigSource):
    """Hydra's view of the recipe folders as the config group `recipe`, and of recipe files given by path."""

    @staticmethod
    def scheme() -> str:
        return "recipes"

    def _files(self) -> dict[str, Path]:
        return {**recipe_files(), **RecipesByPath.instance().files}

    def load_config(self, config_path: str) -> ConfigResult:
        path = self._files()[config_path.removeprefix("recipe/").removesuffix(".yaml")]
        content, package = read_recipe(path)
        if "request" in content:
            request = OmegaConf.to_container(content, resolve=False)["request"]  # type: ignore[call-overload,index]
            content["request"] = with_paths(request, beside(path.parent))
        header: dict[str, str | None] = {"package": package}
        return ConfigResult(config=content, path=f"{self.scheme()}://{path}", provider=self.provider, header=header)

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return config_path in ("", "recipe")

    def is_config(self, config_path: str) -> bool:
        group, _, name = config_path.partition("/")
        return group == "recipe" and name.removesuffix(".yaml") in self._files()

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        if config_path == "recipe" and results_filter != ObjectType.GROUP:
            return sorted(self._files())
        return ["recipe"] if config_path == "" and results_filter != ObjectType.CONFIG else []


class RecipeSearchPath(SearchPathPlugin):
    """Adds the recipe folders to Hydra's search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="ltxgen-recipes", path=f"{RecipeSource.scheme()}://")


def read_recipe(path: Path) -> tuple[DictConfig, str]:
    """A recipe's content and the package that its header names.

    `Refusal` when it is no mapping in YAML, when it would configure Hydra, which builds callbacks and loggers from any
    `_target_`, and when it would read the environment: a recipe from a stranger runs no code and learns no secrets.
    """
    try:
        text = path.read_text(encoding="utf-8")
        check_size(yaml.safe_load(text))
        content = OmegaConf.create(text)
    except OSError as error:
        raise Refusal([Problem("recipe", str(path), f"can't be read ({error.strerror}); make it readable")]) from error
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        fault = " ".join(str(error).split())
        raise Refusal([Problem("recipe", str(path), f"is no YAML that can be read: {fault}")]) from error
    if not isinstance(content, DictConfig):
        raise Refusal([Problem("recipe", str(path), "must be a mapping: name, defaults, stages, ...")])
    found = re.search(r"^#\s*@package\s+(\S+)", text, flags=re.MULTILINE)
    package = found[1] if found else "_global_"
    defaults = OmegaConf.to_container(content, resolve=False).get("defaults") or []  # type: ignore[union-attr]
    if not isinstance(defaults, list):
        message = f"has defaults {defaults!r}, which must be a list such as [/stage@stages.base: denoise, _self_]"
        raise Refusal([Problem("recipe", str(path), message)])
    if any("hydra" in text for text in (package, *map(str, content), *map(str, defaults))):
        raise Refusal([Problem("recipe", str(path), "sets `hydra`, which only the command line may; remove it")])
    texts = _texts(OmegaConf.to_container(content, resolve=False))
    if resolved := next(filter(None, map(_REFERENCE.search, texts)), None):
        message = f"holds {resolved[0]!r}: only references to other keys and ${{now:...}} may stand in a recipe"
        raise Refusal([Problem("recipe", str(path), message)])
    return content, package


# An interpolation, not escaped, that is neither `${key}` nor the time: OmegaConf's resolvers read the environment.
_REFERENCE = re.compile(r"(?<!\\)(?:\\\\)*\$\{(?!\.*[A-Za-z_][\w.]*\}|now:[^${}]*\})[^}]*\}?")


def _texts(node: Any) -> Iterator[str]:
    """Every key and every text."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield str(key)
            yield from _texts(value)
    elif isinstance(node, list):
        for value in node:
            yield from _texts(value)
    elif isinstance(node, str):
        yield node


def register_plugins() -> None:
    """Make recipes, and how sweeps run, known to Hydra; safe to call more than once."""
    Plugins.instance().register(RecipeSearchPath)
    register_sweeps()
    sources = SourcesRegistry.instance()
    if RecipeSource.scheme() not in sources.types:
        sources.register(RecipeSource)


def name_recipe_paths(overrides: Sequence[str]) -> list[str]:
    """Replace `+recipe=PATH/recipe.yaml` by a name that `RecipeSource` knows; `Refusal` when the file is missing."""
    named = []
    for override in overrides:
        key, separator, value = override.partition("=")
        if key.lstrip("+") == "recipe" and separator and value.endswith((".yaml", ".yml")):
            path = Path(value).expanduser()
            if not path.is_file():
                raise Refusal([Problem("recipe", value, "no such file; give a recipe's name or the path of its YAML")])
            name = re.sub(r"\W+", "_", path.resolve().parent.name + "_" + path.stem)
            RecipesByPath.instance().files[name] = path.resolve()
            override = f"{key}={name}"
        named.append(override)
    return named
