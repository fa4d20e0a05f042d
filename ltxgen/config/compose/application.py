"""ltxgen as a Hydra application, for a run and for sweeps."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NoReturn, cast

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ltxgen.config.compose.composition import CONFIG_NAME, compose_config, refuse_bad_package
from ltxgen.config.compose.folders import data_folder
from ltxgen.config.compose.overrides import fixed_words, has_other_plugins, in_quotes, is_sweep
from ltxgen.config.compose.recipes import register_plugins
from ltxgen.config.errors import MISSING, Problem, Refusal
from ltxgen.config.launcher import ROWS, RUN_JOBS, RunJobs

_RAISES = "HYDRA_FULL_ERROR"  # else Hydra prints errors in its own way and ends the process


def hydra_app(
    job: Callable[[dict[str, Any]], float | None],
    run_jobs: RunJobs,
    arguments: Sequence[str],
    rows: Sequence[Sequence[str]] | None = None,
    own_folder: Callable[[Path], AbstractContextManager[Path]] = nullcontext,
) -> None:
    """Run as a Hydra application with these words: `job` once, or `run_jobs` with those of a sweep, or none (--help).

    The jobs of a sweep get numbered folders inside the one that `output.dir` names. Other launchers than ltxgen's call
    `job` for each, wherever they run it; the folder of such a sweep is what `own_folder` gives for it. `rows` are
    overrides: a sweep has its jobs for each of them.
    """
    asked = get_args_parser().parse_args(list(arguments))
    if asked.cfg and asked.package not in (None, "_global_"):
        refuse_bad_package(asked.cfg, asked.package, asked.overrides)
    given = any(word.lstrip("+").startswith("hydra.sweep.dir=") for word in arguments)
    if not is_sweep(arguments) or not has_other_plugins(arguments) or given:
        _run_hydra(job, run_jobs, arguments, rows)
        return
    with own_folder(_sweep_folder(arguments)) as folder:
        # Other plugins leave in `hydra.sweep.dir` what their users look for; ltxgen's launcher goes by `output.dir`.
        place = in_quotes(str(folder))
        _run_hydra(job, run_jobs, [*arguments, f"hydra.sweep.dir={place}", f"output.dir={place}"], rows)


def _sweep_folder(arguments: Sequence[str]) -> Path:
    """Where the first job says that the sweep goes; the others, in processes of their own, can't know its time."""
    return Path(compose_config(fixed_words(arguments))["output"]["dir"]).expanduser()


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
    saved = sys.argv, os.environ.get(_RAISES)
    sys.argv, os.environ[_RAISES] = ["ltxgen", *arguments], "1"
    try:
        main()
    finally:
        sys.argv = saved[0]
        if saved[1] is None:
            del os.environ[_RAISES]
        else:
            os.environ[_RAISES] = saved[1]


def refuse_bad_flags(words: Sequence[str]) -> None:
    """Refusal for flags that Hydra doesn't have, or that lack their word."""

    def refuse(message: str) -> NoReturn:
        raise Refusal([Problem("command line", MISSING, f"{message}; see `ltxgen --help`")])

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    parser.parse_args(list(words))
