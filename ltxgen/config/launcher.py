"""The Hydra launcher `ltxgen`, the default for sweeps: hands all jobs over at once, where others run each by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from ltxgen.config.errors import Problem, Refusal

TARGET = "hydra_plugins.ltxgen.SweepLauncher"  # as conf/hydra/launcher/ltxgen.yaml has it
RUN_JOBS = "run_jobs"  # the attribute of the application's function that holds a `RunJobs`


@dataclass(frozen=True)
class SweepJob:
    """One job, by its number, with the words that make it and its composed config.

    `output.dir` in the config is the folder of this number inside the sweep's.
    """

    number: int
    overrides: tuple[str, ...]
    config: Mapping[str, Any]


RunJobs = Callable[[Sequence[SweepJob]], Sequence[float | None]]
"""Runs jobs and returns what a sweeper that looks for the best one compares."""


class SweepLauncher(Launcher):
    """Composes the jobs and calls the application's `RunJobs`; a sweeper that needs results to go on does so again and
    again."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._loader = hydra_context.config_loader
        self._config = config
        self._run_jobs: RunJobs = getattr(task_function, RUN_JOBS)
        self._folder: tuple[str, Path] | None = None  # output.dir as it is written, and as the first job resolves it

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        setup_globals()
        numbered = list(enumerate(job_overrides, initial_job_idx))
        configs = [self._loader.load_sweep_config(self._config, list(overrides)) for _, overrides in numbered]
        jobs = [
            SweepJob(number, tuple(overrides), self._composed(config, number))
            for (number, overrides), config in zip(numbered, configs, strict=True)
        ]
        values = self._run_jobs(jobs)
        return [
            JobReturn(job.overrides, config, config.hydra, str(Path.cwd()), "ltxgen", JobStatus.COMPLETED, value)
            for job, config, value in zip(jobs, configs, values, strict=True)
        ]

    def _composed(self, config: DictConfig, number: int) -> Mapping[str, Any]:
        """The job's config as plain data, without Hydra's part."""
        with open_dict(config):
            config.hydra.job.id = str(number)
            config.hydra.job.num = number
        HydraConfig.instance().set_config(config)
        own = config.copy()
        with open_dict(own):
            del own["hydra"]
        data = cast(dict[str, Any], OmegaConf.to_container(own, resolve=True))
        written = cast(dict[str, Any], OmegaConf.to_container(own, resolve=False))["output"]["dir"]
        if self._folder is None:
            self._folder = (written, Path(data["output"]["dir"]))
        if written != self._folder[0]:
            message = f"a sweep has one folder, with a numbered one for each job; there is {self._folder[0]} as well"
            raise Refusal([Problem("output.dir", written, message)])
        data["output"]["dir"] = str(self._folder[1] / str(number))
        return data


def register_launcher() -> None:
    """Make the launcher known to Hydra under a name of its plugin namespace: it takes no others."""
    Plugins.instance().class_name_to_class[TARGET] = SweepLauncher
