"""Starts the ranks of a run through accelerate's launcher, and has them agree on one config.

The launching process composes once and freezes the config as JSON; ranks get its path and hash. Where accelerate was
started by hand, every rank composes. In both cases all compare hashes before anything loads.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from ltxgen.config.errors import MISSING, Problem, Refusal
from ltxgen.config.schema import Check, NonNegativeInt, PositiveInt
from ltxgen.parallel.ending import SPOKEN, RankFailure

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

Port = Annotated[int, Check("must be between 1 and 65535", lambda port: 1 <= port <= 65535)]

# What may differ between ranks: the folder holds the time of composing, and each machine has its own number.
_LOCAL = ("output.dir", "parallel.machine_rank")
_KEYS_SHOWN = 10


@dataclass(frozen=True)
class LaunchConfig:
    """How many processes a run has and where. Base of every config in the group `parallel`.

    `num_processes` of null is as many as accelerate started, and one without it. With more than one machine the same
    command runs on each, with its own `machine_rank` (0 holds the output), and `main_process_ip` and
    `main_process_port` name machine 0. On one machine a port of null is any free one.
    """

    num_processes: PositiveInt | None = None
    num_machines: PositiveInt = 1
    machine_rank: NonNegativeInt = 0
    main_process_ip: str | None = None
    main_process_port: Port | None = None

    @property
    def processes_per_machine(self) -> int:
        return (self.num_processes or 1) // self.num_machines


def launch_problems(config: LaunchConfig) -> list[Problem]:
    """What keeps `config` from being launched anywhere."""
    problems = []
    if (config.num_processes or 1) % config.num_machines:
        message = f"must be a multiple of parallel.num_machines = {config.num_machines}: each machine starts as many"
        problems.append(Problem("parallel.num_processes", config.num_processes, message))
    if config.machine_rank >= config.num_machines:
        message = f"must be below parallel.num_machines = {config.num_machines}"
        problems.append(Problem("parallel.machine_rank", config.machine_rank, message))
    if config.num_machines > 1:
        problems += [
            Problem(f"parallel.{name}", MISSING, "must be set for more than one machine: where machine 0 is reached")
            for name in ("main_process_ip", "main_process_port")
            if getattr(config, name) is None
        ]
    return problems


def gpu_problems(config: LaunchConfig, num_gpus: int | None) -> list[Problem]:
    """What keeps `config` from being launched on this machine; `num_gpus` is None for a run on the CPU."""
    if num_gpus is None or config.processes_per_machine <= num_gpus:
        return []
    message = (
        f"puts {config.processes_per_machine} processes on this machine, which has {num_gpus} GPUs, and each needs "
        f"its own; the most is {num_gpus * config.num_machines}"
    )
    return [Problem("parallel.num_processes", config.num_processes, message)]


def freeze(config: Mapping[str, Any], path: Path) -> str:
    """Write `config` for the ranks; returns its sha256."""
    text = _canonical(config)
    path.write_text(text, encoding="utf-8")
    return _sha256(text)


def thaw(path: Path, sha256: str) -> dict[str, Any]:
    """The config that `freeze` wrote. Raises Refusal when it is another one by now."""
    text = path.read_text(encoding="utf-8")
    if _sha256(text) != sha256:
        raise Refusal([Problem("config", str(path), "was changed after the run was started; start it again")])
    return cast(dict[str, Any], json.loads(text))


def agree(config: Mapping[str, Any], world_size: int, gather: Callable[[Any], list[Any]]) -> dict[str, Any]:
    """The config that all ranks have, with the first rank's output folder; a collective call.

    Raises Refusal on every rank, naming the keys that differ, when they have different ones.
    """
    composed = dict(config)
    composed["parallel"] = {**composed["parallel"], "num_processes": world_size}
    compared = {key: value for key, value in _flat(composed).items() if key not in _LOCAL}
    if len(set(gather(_sha256(_canonical(compared))))) > 1:
        raise Refusal(differences(gather(compared)))
    return {**composed, "output": {**composed["output"], "dir": gather(composed["output"]["dir"])[0]}}


def check_world_size(num_processes: int | None, world_size: int) -> None:
    """Raises Refusal when a launcher started another number of processes than the config asks for (None: any)."""
    if num_processes not in (None, world_size):
        message = f"the launcher started {world_size} processes; leave this out, or give both the same number"
        raise Refusal([Problem("parallel.num_processes", num_processes, message)])


def differences(configs: Sequence[Mapping[str, Any]]) -> list[Problem]:
    """A problem for each key that has not the same value in the flat configs of all ranks."""
    keys = list(dict.fromkeys(key for config in configs for key in config))
    problems = []
    for key in keys:
        ranks_by_value: dict[str, list[int]] = {}
        for rank, config in enumerate(configs):
            value = json.dumps(config[key], ensure_ascii=False) if key in config else "absent"
            ranks_by_value.setdefault(value, []).append(rank)
        if len(ranks_by_value) > 1:
            values = " and ".join(f"{_shortened(value)} on {_ranks(ranks)}" for value, ranks in ranks_by_value.items())
            problems.append(Problem(key, MISSING, f"is {values}; start all ranks with the same words and files"))
    if not problems:
        return [
            Problem("config", MISSING, "has the same keys in another order on some ranks, and stages run in theirs")
        ]
    if len(problems) <= _KEYS_SHOWN:
        return problems
    more = Problem("config", MISSING, f"{len(problems) - _KEYS_SHOWN} more keys differ between ranks")
    return [*problems[:_KEYS_SHOWN], more]


def launch(config: LaunchConfig, words: Sequence[str], log_folder: Path) -> None:
    """Run `python -m ltxgen WORDS` on this machine's ranks through accelerate's launcher; returns when all are done.

    When one fails or is killed, the others are ended. Raises RankFailure then, and KeyboardInterrupt after Ctrl-C, in
    both cases with no rank left. `log_folder` is an empty folder for the launcher's own files.
    """
    # The launcher's own entry point, in this process: its exceptions are data here and a page of traceback elsewhere.
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    arguments = launch_command_parser().parse_args(accelerate_words(config, words, log_folder))
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        arguments.signals_to_handle = "SIGTERM,SIGINT,SIGQUIT"  # torchelastic's without SIGHUP: nohup stays nohup
    try:
        with _elastic_is_quiet():
            launch_command(arguments)
    except ChildFailedError as error:
        told = [file.read_text(encoding="utf-8") for file in log_folder.rglob(SPOKEN)]
        failure = failure_of(error, bool(told))
        failure.told = "\n".join(told)
        raise failure from error
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from error
        raise RankFailure(128 + error.sigval, f"ended by {error.sigval.name}") from error


def accelerate_words(config: LaunchConfig, words: Sequence[str], log_folder: Path) -> list[str]:
    """The command line after `accelerate launch`. What is given here is not looked up in accelerate's own config."""
    port = config.main_process_port if config.main_process_port is not None else 0  # 0: any free one
    flags = {
        "num_processes": config.num_processes,
        "num_machines": config.num_machines,
        "machine_rank": config.machine_rank,
        "main_process_port": port,
        "mixed_precision": "no",
        "dynamo_backend": "no",
        "num_cpu_threads_per_process": _threads_per_process(config.processes_per_machine),
        "log_dir": log_folder,
    }
    if config.main_process_ip is not None:
        flags["main_process_ip"] = config.main_process_ip
    # "multi_gpu" chooses torchelastic, which serves gloo on CPUs as well.
    given = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    return ["--multi_gpu", *given, "--module", "ltxgen", *words]


def _threads_per_process(processes_per_machine: int) -> int:
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() else max(1, (os.cpu_count() or 1) // processes_per_machine)


def failure_of(error: ChildFailedError, spoken: bool) -> RankFailure:
    """The first rank's failure; without a message when a rank has `spoken`. A refusal on a rank stays one."""
    rank, first = min(error.failures.items(), key=lambda item: item[1].timestamp)
    code = 2 if first.exitcode == 2 else 1
    if spoken:
        return RankFailure(code, rank=rank)
    number = -first.exitcode if first.exitcode < 0 else first.exitcode - 128
    if number not in set(signal.Signals):
        return RankFailure(code, f"rank {rank} ended with exit code {first.exitcode} and no message", rank)
    name = signal.Signals(number).name
    why = "; when nobody did that, the machine ran out of memory" if number == signal.SIGKILL else ""
    return RankFailure(code, f"rank {rank} was killed by {name}{why}", rank)


@contextmanager
def _elastic_is_quiet() -> Iterator[None]:
    """Keep torchelastic's log of dead and closing processes off stderr: what they say, the failure says."""
    loggers = [logging.getLogger(name) for name in ("torch.distributed.elastic", "torch.distributed.run")]
    nowhere = logging.NullHandler()
    for logger in loggers:
        logger.addHandler(nowhere)
        logger.propagate = False
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(nowhere)
            logger.propagate = True


def _canonical(config: Mapping[str, Any]) -> str:
    return json.dumps(config, ensure_ascii=False, separators=(",", ":"))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`; the order of keys is kept, since stages run in theirs."""
    if not isinstance(node, Mapping) or not node:
        return {prefix: node}
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
