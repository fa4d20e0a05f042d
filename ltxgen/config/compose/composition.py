"""Composes Hydra's config tree with overrides, and tells all of their mistakes at once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import setup_globals
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ltxgen.config.compose.folders import data_folder, groups, recipe_files
from ltxgen.config.compose.overrides import unreadable
from ltxgen.config.compose.recipes import RecipesByPath, register_plugins
from ltxgen.config.errors import MISSING, Problem, Refusal, did_you_mean, first_line

CONFIG_NAME = "config"

# ValueError: Hydra's own for a choice that reads as a number (`request=5`).
# RecursionError: of a recipe that builds on itself.
COMPOSITION_ERRORS = (ConfigCompositionException, HydraException, ValueError, RecursionError)


def compose_config(overrides: Sequence[str]) -> dict[str, Any]:
    """Compose conf/ with `overrides` into plain data, interpolations resolved.

    Overrides that Hydra can't apply are all collected, each with the nearest known key or choice, before `Refusal`.
    """
    with _hydra():
        config, problems = _compose_tolerantly(list(overrides))
    try:
        data = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise Refusal(
            [*problems, Problem(getattr(error, "full_key", None) or "config", MISSING, first_line(error))]
        ) from error
    if problems:
        raise CompositionRefusal(problems, data)
    return cast(dict[str, Any], data)


def refuse_bad_package(which: str, package: str, overrides: Sequence[str]) -> None:
    """Refusal for a `package` that the composed config does not hold; of it Hydra shows `which`: job, hydra or all."""
    with _hydra():
        whole = compose(CONFIG_NAME, overrides=list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(whole)  # for ${hydra:...} in it
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        config = hydra.get_sanitized_cfg(whole, which)
        if OmegaConf.select(config, package) is not None:
            return
        known = list(_paths(OmegaConf.to_container(config, resolve=False), ""))
        if package in known:
            raise Refusal([Problem("--package", package, "is null, so there is nothing to show")])
        inside = next((parent for parent in _parents(package) if parent in known), "")
        there = [key for key in known if key.rpartition(".")[0] == inside]
        message = f"is not in the config; there are {', '.join(there)}{did_you_mean(package, known)}"
        raise Refusal([Problem("--package", package, message)])


class CompositionRefusal(Refusal):
    """Some overrides did not apply; `data` is what the others gave, so that its own problems can be told as well."""

    def __init__(self, problems: Sequence[Problem], data: Any) -> None:
        super().__init__(problems)
        self.data = data


@contextmanager
def _hydra() -> Iterator[None]:
    register_plugins()
    setup_globals()  # the resolvers ${now:...} and ${hydra:...}
    # A Hydra application that is running (we may be inside its job) must find its own state again afterwards.
    saved = Singleton.get_state()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(data_folder("conf")), job_name="ltxgen"):
            yield
    finally:
        Singleton.set_state(saved)


def _compose_tolerantly(overrides: list[str]) -> tuple[DictConfig, list[Problem]]:
    """The config without the overrides that can't be applied, and a problem for each of those."""
    failed: list[tuple[str, Exception]] = []
    while True:
        try:
            config = compose(CONFIG_NAME, overrides=overrides)
            break
        except COMPOSITION_ERRORS as error:
            culprit = _culprit(error, overrides)
            if culprit is None:
                raise Refusal([Problem("command line", MISSING, first_line(error))]) from error
            failed.append((culprit, error))
            overrides = [override for override in overrides if override != culprit]
    known = list(_paths(OmegaConf.to_container(config, resolve=False), ""))
    return config, [_override_problem(override, known, error) for override, error in failed]


def _culprit(error: Exception, overrides: list[str]) -> str | None:
    """The override that `error` is about: the one without which composition no longer fails in the same way."""
    # Values apply in order, after all choices: going from the last value to the first, what is taken out can't be what
    # the failing one stands on (`+recipe=...` brings the stages whose keys others set).
    last_first = list(reversed(overrides))
    for override in sorted(last_first, key=_is_choice):
        rest = [other for other in overrides if other != override]
        try:
            compose(CONFIG_NAME, overrides=rest)
            return override
        except COMPOSITION_ERRORS as other_error:
            if str(other_error) != str(error):
                return override
    return None


def _is_choice(override: str) -> bool:
    """Whether an override chooses a YAML (`model=ltx23`, `+recipe=NAME`) rather than setting a value."""
    name = override.partition("=")[0].lstrip("+~").partition("@")[0]
    return name == "recipe" or (bool(name) and (data_folder("conf") / name).is_dir())


def _override_problem(override: str, known_keys: Sequence[str], error: Exception) -> Problem:
    key, separator, value = override.partition("=")
    name = key.lstrip("+~")
    if not name or (not separator and not key.startswith("~")):
        return Problem("command line", override, "an override reads key=value; see `ltxgen --help`")
    if name == "recipe":
        known = sorted(recipe_files())
        if value in known or value in RecipesByPath.instance().files:
            return Problem("recipe", value, _fault_of_recipe(error))
        return Problem("recipe", value, f"no such recipe; there are {', '.join(known)}{did_you_mean(value, known)}")
    group = data_folder("conf") / name.partition("@")[0]
    if group.is_dir():
        known = sorted(path.stem for path in group.glob("*.yaml"))
        message = f"no such choice; there are {', '.join(known)}{did_you_mean(value, known)}"
        if name.startswith("hydra/"):
            message += "; those of other packages have to be installed (docs/sweeps.md)"
        return Problem(name, value, message)
    if "Ambiguous value" in str(error):
        return Problem(name, value, "several values are a sweep: add -m; or for one text write \"'...'\" around it")
    if name not in known_keys:
        shown = value if separator else MISSING
        return Problem(name, shown, f"is not a known key{_nearest(name, known_keys)}")
    if isinstance(error, OverrideParseException):
        return unreadable(override, error)
    return Problem(name, value, first_line(error))


def _nearest(name: str, known_keys: Sequence[str]) -> str:
    """What of `known_keys` may be meant; of a stage that is not there, which ones are."""
    stages = [key.removeprefix("stages.") for key in known_keys if re.fullmatch(r"stages\.\w+", key)]
    stage = re.match(r"stages\.(\w+)", name)
    if not stages or stage is None or stage[1] in stages:
        return did_you_mean(name, known_keys)
    return f"; the stages are {', '.join(stages)}{did_you_mean(stage[1], stages)}"


def _fault_of_recipe(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "its defaults lead back to itself; take it out of them"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        if known := error.options or groups().get(group):
            return f"{first_line(error).rstrip('.')}; there are {', '.join(known)}{did_you_mean(name, known)}"
    return first_line(error)


def _parents(path: str) -> Iterator[str]:
    while path := path.rpartition(".")[0]:
        yield path


def _paths(node: Any, prefix: str) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            path = f"{prefix}.{key}" if prefix else str(key)
            yield path
            yield from _paths(value, path)
