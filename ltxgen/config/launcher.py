"""Hydra's view of a sweep: the launcher `ltxgen`, its default, hands all jobs over at once instead of running each."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from ltxgen.config.errors import Problem, Refusal

NAMESPACE = "hydra_plugins.ltxgen"  # in the YAMLs: Hydra takes plugins of no other
# Attributes of the application's function: a `RunJobs`, and the overrides of each row of a file of requests.
RUN_JOBS, ROWS = "run_jobs", "rows"


@dataclass(frozen=True)
class SweepJob:
    """One job, by its number, with the words that make it and its composed config.

    `output.dir` in the config is the folder of this number inside the sweep's.
    """

    number: int
    overrides: tuple[str, ...]
    config: Mapping[str, Any]


RunJobs = Callable[[Callable[[], Sequence[SweepJob]]], Sequence[float | None]]
"""Composes jobs by calling its argument, runs them, and returns what a sweeper that looks for the best one compares."""


class SweepLauncher(Launcher):
    """Calls the application's `RunJobs`; for a sweeper that needs results to go on, again and again."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._compositions = Compositions(cast(ConfigLoaderImpl, hydra_context.config_loader), config)
        self._run_jobs: RunJobs = getattr(task_function, RUN_JOBS)
        self._folder: tuple[str, Path] | None = None  # output.dir as it is written, and as the first job resolves it

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        setup_globals()

        def composed() -> list[SweepJob]:
            numbered = enumerate(job_overrides, initial_job_idx)
            return [SweepJob(number, tuple(words), self._composed(words, number)) for number, words in numbered]

        values = self._run_jobs(composed)
        return [
            JobReturn(overrides, status=JobStatus.COMPLETED, _return_value=value)
            for overrides, value in zip(job_overrides, values, strict=True)
        ]

    def _composed(self, overrides: Sequence[str], number: int) -> Mapping[str, Any]:
        """The job's config as plain data, without Hydra's part."""
        config = self._compositions.compose(overrides)
        with open_dict(config):
            config.hydra.job.id = str(number)
            config.hydra.job.num = number
        HydraConfig.instance().set_config(config)
        own = config.copy()
        with open_dict(own):
            del own["hydra"]
        data = cast(dict[str, Any], OmegaConf.to_container(own, resolve=True))
        written = cast(dict[str, Any], OmegaConf.to_container(own, resolve=False))["output"]["dir"]
        if not data["output"]["dir"]:
            raise Refusal([Problem("output.dir", "", "must name a folder; leave it out for outputs/NAME/TIME")])
        if self._folder is None:
            self._folder = (written, Path(data["output"]["dir"]))
        if written != self._folder[0]:
            message = f"a sweep has one folder, with a numbered one for each job; there is {self._folder[0]} as well"
            raise Refusal([Problem("output.dir", written, message)])
        data["output"]["dir"] = str(self._folder[1] / str(number))
        return data


class Compositions:
    """Composes jobs as `load_sweep_config` of Hydra's `loader` would, from `config`, the sweep's.

    Files are read and merged once for all jobs that choose the same ones; only values are set for each.
    """

    def __init__(self, loader: ConfigLoaderImpl, config: DictConfig) -> None:
        self._loader = loader
        self._config = config
        self._known: dict[tuple[str, ...], DictConfig] = {}

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        choices = tuple(word for word, each in zip(overrides, parsed, strict=True) if not self._is_value(each))
        if choices not in self._known:
            self._known[choices] = self._loader.load_sweep_config(self._config, list(choices))
        config = copy.deepcopy(self._known[choices])
        self._loader._apply_overrides_to_config([each for each in parsed if self._is_value(each)], config)
        _tell_overrides([each for each in parsed if not each.is_hydra_override()], config)
        return config

    def _is_value(self, override: Override) -> bool:
        """As Hydra tells apart what sets a value from what chooses a file."""
        chooses = self._loader.repository.group_exists(override.key_or_group) and not isinstance(override.value(), dict)
        return not chooses and not override.is_hydra_override()


def _tell_overrides(overrides: Sequence[Override], config: DictConfig) -> None:
    """Write down in Hydra's own part, which others may refer to, what a job's words are."""
    job = config.hydra.job
    with open_dict(config.hydra):
        config.hydra.overrides.task = [each.input_line for each in overrides]
        job.override_dirname = get_overrides_dirname(list(overrides), **job.config.override_dirname)


class ProductSweeper(Sweeper):
    """Every combination of values, as Hydra's basic sweeper, for each row of a file of requests, if there is one.

    Hydra's own also composes each job, which `SweepLauncher` does for all before it runs the first.
    """

    def __init__(self, max_batch_size: int | None = None, params: Mapping[str, str] | None = None) -> None:
        self._max_batch_size = max_batch_size
        self._params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._loader = hydra_context.config_loader
        self._rows: Sequence[Sequence[str]] = getattr(task_function, ROWS) or [()]
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        words = [*(f"{key}={value}" for key, value in self._params.items()), *arguments]
        overrides = OverridesParser.create(config_loader=self._loader).parse_overrides(words)
        number = 0
        for combinations in BasicSweeper.split_arguments(overrides, self._max_batch_size):
            batch = [[*combination, *row] for row in self._rows for combination in combinations]
            for result in self._launcher.launch(batch, initial_job_idx=number):
                _ = result.return_value  # raises the error of a failed job
            number += len(batch)


def register_sweeps() -> None:
    """Make these known to Hydra."""
    for plugin in (SweepLauncher, ProductSweeper):
        Plugins.instance().class_name_to_class[f"{NAMESPACE}.{plugin.__name__}"] = plugin
