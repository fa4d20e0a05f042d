"""Composition: Hydra's config tree, recipes found by name or path, overrides, and their mistakes told at once."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, cast

import hydra
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import setup_globals
from hydra.errors import ConfigCompositionException, HydraException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ltxgen.config.errors import MISSING, Problem, Refusal, did_you_mean
from ltxgen.config.inputs import beside, check_size, with_paths
from ltxgen.config.launcher import ROWS, RUN_JOBS, RunJobs, register_sweeps

CONFIG_NAME = "config"
# ValueError: Hydra's own for a choice that reads as a number (`request=5`).
COMPOSITION_ERRORS = (ConfigCompositionException, HydraException, ValueError)


def data_folder(name: str) -> Path:
    """The folder `conf` or `recipes`: inside the installed package, or at the top of the checkout."""
    package = Path(str(resources.files("ltxgen")))
    installed = package / name
    return installed if installed.is_dir() else package.parent / name


def recipe_folders() -> list[Path]:
    """Where `+recipe=NAME` looks, in order: the user's project, then ltxgen's own."""
    return list(
        dict.fromkeys(folder.resolve() for folder in (Path("recipes"), data_folder("recipes")) if folder.is_dir())
    )


def recipe_files() -> dict[str, Path]:
    """Every recipe by name; the user's project hides ltxgen's recipe of the same name."""
    found: dict[str, Path] = {}
    for folder in recipe_folders():
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


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
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        fault = " ".join(str(error).split())
        raise Refusal([Problem("recipe", str(path), f"is no YAML that can be read: {fault}")]) from error
    if not isinstance(content, DictConfig):
        raise Refusal([Problem("recipe", str(path), "must be a mapping: name, defaults, stages, ...")])
    found = re.search(r"^#\s*@package\s+(\S+)", text, flags=re.MULTILINE)
    package = found[1] if found else "_global_"
    defaults = OmegaConf.to_container(content, resolve=False).get("defaults") or ()  # type: ignore[union-attr]
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


def is_sweep(words: Sequence[str]) -> bool:
    """Whether Hydra is asked for a sweep."""
    return any(word in ("--multirun", "-m") for word in words)


def open_overrides(words: Sequence[str]) -> list[str]:
    """Words as Hydra wants them.

    `recipe=NAME`, `stages.S.loras.NAME=...` and `artifacts.loras.NAME...=...` do without Hydra's `+`. Prompts and paths
    are taken as they stand, with commas, brackets and quotes; in a sweep they follow Hydra's grammar, where a comma
    separates.
    """
    words = ["+" + word if word.startswith("recipe=") else word for word in words]
    opened = ["++" + word if re.match(r"(stages\.\w+|artifacts)\.loras\.\w", word) else word for word in words]
    return opened if is_sweep(words) else [_quoted(word) for word in opened]


def written_word(word: str) -> str:
    """An override of `open_overrides` as it was given."""
    return re.sub(r"^\+\+(?=(stages\.\w+|artifacts)\.loras\.\w)", "", word)


_TEXT_KEY = re.compile(r"\+*(request\.(negative_)?prompt|output\.dir|cache\.folder|artifacts\.[\w.]+\.path)")
_QUOTED = re.compile(r"""'(\\.|[^'\\])*'|"(\\.|[^"\\])*\"""", re.DOTALL)


def _quoted(word: str) -> str:
    """A text's override with Hydra's quotes around the value, unless it has them or is null where that means none."""
    key, _, value = word.partition("=")
    is_null = value == "null" and not key.endswith("request.prompt")
    if not _TEXT_KEY.fullmatch(key) or is_null or _QUOTED.fullmatch(value):
        return word
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return f"{key}='{escaped}'"


def jobs_of_sweep(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of every job of a sweep; `Refusal` for one that does not parse."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        batches = BasicSweeper.split_arguments(parsed, None)
    except HydraException as error:
        raise Refusal([Problem("command line", MISSING, _first_line(error))]) from error
    return [list(job) for batch in batches for job in batch]


def hydra_app(
    job: Callable[[dict[str, Any]], float | None],
    run_jobs: RunJobs,
    arguments: Sequence[str],
    rows: Sequence[Sequence[str]] | None = None,
) -> None:
    """Run as a Hydra application with these words: `job` once, or `run_jobs` with those of a sweep, or none (--help).

    The jobs of a sweep get numbered folders inside the one that `output.dir` names. Other launchers than ltxgen's call
    `job` for each, wherever they run it. `rows` are overrides: a sweep has its jobs for each of them.
    """
    given = any(word.lstrip("+").startswith("hydra.sweep.dir=") for word in arguments)
    if is_sweep(arguments) and has_other_plugins(arguments) and not given:
        # They leave there what their users look for.
        arguments = [*arguments, f"hydra.sweep.dir='{_sweep_folder(arguments)}'"]
    _run_hydra(job, run_jobs, arguments, rows)


def has_other_plugins(words: Sequence[str], groups: str = "launcher|sweeper") -> bool:
    """Whether a launcher or sweeper is asked for that isn't the default."""
    return any(re.match(rf"hydra/({groups})=(?!ltxgen$)", word) for word in words)


def _sweep_folder(arguments: Sequence[str]) -> str:
    """Where the first job says that the sweep goes; the others, in processes of their own, can't know its time."""
    return str(compose_config(fixed_words(arguments))["output"]["dir"])


def fixed_words(words: Sequence[str]) -> list[str]:
    """The overrides that are the same for all jobs of a sweep."""
    overrides = [word for word in words if not word.startswith("-")]
    parsed = OverridesParser.create().parse_overrides(overrides)
    return [word for word, override in zip(overrides, parsed, strict=True) if not override.is_sweep_override()]


def _run_hydra(
    job: Callable[[dict[str, Any]], float | None],
    run_jobs: RunJobs,
    arguments: Sequence[str],
    rows: Sequence[Sequence[str]] | None,
) -> None:
    register_plugins()

    def app(config: DictConfig) -> float | None:
        data = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
        running = HydraConfig.get()
        if running.mode == RunMode.MULTIRUN:
            data["output"]["dir"] = str(Path(running.sweep.dir) / str(running.job.num))
        return job(data)

    setattr(app, RUN_JOBS, run_jobs)
    setattr(app, ROWS, rows)
    main = hydra.main(version_base="1.3", config_path=str(data_folder("conf")), config_name=CONFIG_NAME)(app)
    saved = sys.argv
    sys.argv = ["ltxgen", *arguments]
    try:
        main()
    finally:
        sys.argv = saved


def groups() -> dict[str, list[str]]:
    """Every config group and what it offers, recipes first."""
    folders = sorted(path for path in data_folder("conf").iterdir() if path.is_dir() and path.name != "hydra")
    found = {folder.name: sorted(path.stem for path in folder.glob("*.yaml")) for folder in folders}
    return {"recipe": sorted(recipe_files()), **found}


def first_comment(group: str, name: str) -> str:
    """What a YAML says of itself in its first sentence of comment."""
    path = recipe_files()[name] if group == "recipe" else data_folder("conf") / group / f"{name}.yaml"
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    words = [line.lstrip("# ") for line in lines if "@package" not in line and not line.startswith("# ltxgen")]
    return re.split(r"(?<=\.)\s", " ".join(words).strip() + " ")[0].strip()


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
            [*problems, Problem(getattr(error, "full_key", None) or "config", MISSING, _first_line(error))]
        ) from error
    if problems:
        raise CompositionRefusal(problems, data)
    return cast(dict[str, Any], data)


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
                raise Refusal([Problem("command line", MISSING, _first_line(error))]) from error
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
            return Problem("recipe", value, _first_line(error))
        return Problem("recipe", value, f"no such recipe; there are {', '.join(known)}{did_you_mean(value, known)}")
    group = data_folder("conf") / name.partition("@")[0]
    if group.is_dir():
        known = sorted(path.stem for path in group.glob("*.yaml"))
        return Problem(name, value, f"no such choice; there are {', '.join(known)}{did_you_mean(value, known)}")
    if "Ambiguous value" in str(error):
        return Problem(name, value, "several values are a sweep: add -m; or for one text write \"'...'\" around it")
    if name not in known_keys:
        return Problem(name, value, f"is not a known key{did_you_mean(name, known_keys)}")
    return Problem(name, value, _first_line(error))


def _paths(node: Any, prefix: str) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            path = f"{prefix}.{key}" if prefix else str(key)
            yield path
            yield from _paths(value, path)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
