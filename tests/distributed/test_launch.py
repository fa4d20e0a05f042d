"""Launching for real: processes, gloo, accelerate's launcher; what is left and told when a rank goes wrong."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

import ltxgen
from ltxgen.config.errors import Refusal
from ltxgen.parallel.launch import (
    LaunchConfig,
    accelerate_words,
    agree,
    check_world_size,
    failure_of,
    freeze,
    gpu_problems,
    launch_problems,
    thaw,
)

FAULTS = Path(__file__).parent / "faults"
# One stage, in which a rank goes wrong: no model is loaded.
FAULT = ("name=fault", "model=ltx23_tiny", "request=demo", "+stages.fault.kind=fault", "cache=off", "output.dir=out")
RANKS = "parallel.num_processes=2"
SECONDS_TO_END = 30  # what the launcher has to end a job with a failed rank; a rank that can't unwind takes 3


class Job:
    """A command with all its processes, which carry a mark in their environment."""

    def __init__(self, command: tuple[str, ...], cwd: Path) -> None:
        self.cwd = cwd
        self.mark = f"LTXGEN_TEST_JOB={cwd}"
        path = os.pathsep.join(map(str, (FAULTS, Path(ltxgen.__file__).parent.parent)))
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "LTXGEN_TEST_JOB": str(cwd)}
        self.process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def wait(self) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        out, err = self.process.communicate(timeout=120)
        return self.process.returncode, out, err

    def processes(self) -> list[int]:
        """Every process of this job that still runs, however it was started."""
        return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal() and self._owns(entry)]

    def _owns(self, entry: Path) -> bool:
        try:
            alive = entry.joinpath("stat").read_text().rpartition(")")[2].split()[0] != "Z"
            return alive and self.mark.encode() in entry.joinpath("environ").read_bytes().split(b"\0")
        except OSError:
            return False  # it has ended meanwhile, or is another user's

    def wait_until_stage_runs(self) -> None:
        assert self.process.stderr is not None
        lines = []
        for line in self.process.stderr:
            if "fault: started" in line:
                time.sleep(0.5)  # until it stands in its collective
                return
            lines.append(line)
        pytest.fail(f"the stage never ran:\n{''.join(lines)}")


@pytest.fixture
def start(tmp_path: Path, tiny_set, offline) -> Iterator[Callable[..., Job]]:
    """`start(*words)`: ltxgen in `tmp_path`; with `by_hand=True` under `accelerate launch` with two processes."""
    jobs: list[Job] = []

    def started(*words: str, by_hand: bool = False) -> Job:
        flags = ("--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no")
        launcher = ("accelerate.commands.launch", *flags, "--main_process_port=0", "-m") if by_hand else ()
        job = Job((sys.executable, "-m", *launcher, "ltxgen", *words), tmp_path)
        jobs.append(job)
        return job

    yield started
    for job in jobs:
        for process in job.processes():
            os.kill(process, signal.SIGKILL)


def told(err: str) -> list[str]:
    """The messages of ltxgen, without the lines of progress."""
    return [line for line in err.splitlines() if not line.startswith(("fault: ", "run: "))]


def test_two_ranks_give_the_video_of_one(start, stored_run, tiny_words, tmp_path: Path):
    job = start(*tiny_words, "output.tensors=true", "output.dir=out", "runtime.threads=1", "parallel=single", RANKS)
    code, out, err = job.wait()
    assert code == 0, err
    alone, folder = stored_run(), tmp_path / "out"
    assert sorted(file.name for file in folder.iterdir()) == sorted(file.name for file in alone.iterdir())
    mine, theirs = (load_file(each / "tensors.safetensors") for each in (folder, alone))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert (folder / "contact_sheet.png").read_bytes() == (alone / "contact_sheet.png").read_bytes()
    assert out.splitlines() == [str(folder / "video.mp4"), str(folder / "contact_sheet.png")]
    assert err.count("write: done") == 1, "one rank shows progress"
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["parallel"]["num_processes"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert job.processes() == []


def test_two_ranks_share_a_run_from_pictures_and_references(start, run_ltxgen, tmp_path: Path):
    """Appended tokens and a mask between them, cut into two shards of unequal content."""
    Image.radial_gradient("L").save(tmp_path / "a.png")
    size = ("request.height=64", "request.width=64", "request.num_frames=9", "stages.base.sigmas=[1.0,0.5,0.0]")
    images = "request.images=[{path: a.png}, {path: a.png, frame: -1, strength: 0.5}]"
    references = ("request.references=[{path: a.png}]", "stages.base.reference_attention=0.5")
    words = ("+recipe=ltx23_ic_lora", "model=ltx23_tiny", *size, images, *references, "output.tensors=true")
    job = start(*words, "output.dir=two", "runtime.threads=1", "parallel=ulysses", RANKS)
    alone = run_ltxgen(*words, "output.dir=one", cwd=tmp_path)
    code, _, err = job.wait()
    assert code == 0, err
    assert alone.code == 0, alone.err
    mine, theirs = (load_file(tmp_path / name / "tensors.safetensors") for name in ("two", "one"))
    assert mine.keys() == theirs.keys()
    assert mine["base.noise.video"].shape[1] == 2 + 1 + 1
    for name, wanted in theirs.items():
        levels = 1 if name == "frames" else 1e-4  # 8-bit values, truncated
        torch.testing.assert_close(mine[name].float(), wanted.float(), atol=levels, rtol=1e-4, msg=name)


def test_a_sampler_adds_the_same_noise_on_all_ranks(start, run_ltxgen, tmp_path: Path):
    """Where ranks share tokens (refine), a rank's own noise would show in what the others see.

    Steps are skipped, sound goes on alone, and ranks without a pass give their weights.
    """
    skip = ("stages.base.guidance.video.skip_step=1", "runtime.numerics=launch")
    size = ("request.height=64", "request.width=128", "request.num_frames=9")
    small = ("model=ltx23_tiny", *size, "output.tensors=true")
    words = ("+recipe=ltx23_two_stage_hq", *small, "stages.base.steps=2", "runtime.threads=1", *skip)
    job = start(*words, "output.dir=two", "parallel=guidance", "parallel.weights=sharded", RANKS)
    alone = run_ltxgen(*words, "output.dir=one", cwd=tmp_path)
    code, _, err = job.wait()
    assert (alone.code, code) == (0, 0), alone.err + err
    mine, theirs = (load_file(tmp_path / name / "tensors.safetensors") for name in ("two", "one"))
    assert mine.keys() == theirs.keys()
    for name in ("base.final.video", "base.final.audio", "refine.final.video", "refine.final.audio"):
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("how", "rank", "message"),
    [
        ("kill", 0, "ltxgen: rank 0 was killed by SIGKILL; when nobody did that, the machine ran out of memory"),
        ("raise", 1, "ltxgen: rank 1: ValueError: a fault of this rank (--debug shows where)"),
    ],
)
def test_a_failing_rank_ends_the_job(start, tmp_path: Path, how: str, rank: int, message: str):
    job = start(*FAULT, f"+stages.fault.how={how}", f"+stages.fault.rank={rank}", RANKS)
    job.wait_until_stage_runs()
    failed = time.monotonic()
    ended, out, err = job.wait()
    assert time.monotonic() - failed < SECONDS_TO_END
    assert (ended, out, told(err)) == (1, "", [message])
    assert list(tmp_path.iterdir()) == []
    assert job.processes() == []


@pytest.mark.parametrize(
    ("number", "how", "code", "message"),
    [
        (signal.SIGINT, "stuck", 130, "ltxgen: interrupted"),
        (signal.SIGTERM, "sleep", 143, "ltxgen: ended by SIGTERM"),
    ],
)
def test_a_signal_ends_all(start, tmp_path: Path, number: signal.Signals, how: str, code: int, message: str):
    job = start(*FAULT, f"+stages.fault.how={how}", RANKS)
    job.wait_until_stage_runs()
    assert len(job.processes()) == 3
    job.process.send_signal(number)
    sent = time.monotonic()
    ended, _, err = job.wait()
    assert time.monotonic() - sent < SECONDS_TO_END / 2
    assert (ended, told(err)) == (code, [message])
    assert list(tmp_path.iterdir()) == []
    assert job.processes() == []


def test_ranks_do_not_outlive_a_killed_launcher(start, tmp_path: Path):
    job = start(*FAULT, "+stages.fault.how=stuck", RANKS)
    job.wait_until_stage_runs()
    job.process.kill()
    deadline = time.monotonic() + SECONDS_TO_END / 2
    while job.processes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert job.processes() == []
    assert list(tmp_path.glob("out/*")) == []


def test_what_is_refused_by_hand(start, tmp_path: Path):
    different = ('request.seed="${oc.decode:${oc.env:RANK}}"', "request.prompt=${oc.env:RANK}")
    jobs = [start(*FAULT, *words, by_hand=True) for words in (different, ("parallel.num_processes=3",))]
    (seeds_code, _, seeds), (size_code, _, size) = (job.wait() for job in jobs)
    assert (seeds_code, size_code) == (1, 1)  # accelerate's own
    assert seeds.startswith(
        "ltxgen: 2 things to change:\n"
        '  request.prompt: is "0" on rank 0 and "1" on rank 1; start all ranks with the same words and files\n'
        "  request.seed: is 0 on rank 0 and 1 on rank 1; start all ranks with the same words and files\n"
    )
    message = "the launcher started 2 processes; leave this out, or give both the same number"
    assert size.startswith(f"ltxgen: parallel.num_processes = 3: {message}\n")
    assert (seeds.count("ltxgen: "), size.count("ltxgen: ")) == (1, 1)
    assert list(tmp_path.iterdir()) == []
    assert jobs[0].processes() == []


def test_by_hand_the_first_ranks_folder_wins(start, tmp_path: Path):
    job = start(*FAULT, "output.dir=out_${oc.env:RANK}", by_hand=True)
    code, _, err = job.wait()
    assert (code, told(err)) == (0, [])
    assert [path.name for path in tmp_path.iterdir()] == ["out_0"]
    recipe = yaml.safe_load((tmp_path / "out_0" / "recipe.yaml").read_text())
    assert recipe["parallel"]["num_processes"] == 2


def test_what_cannot_be_launched_is_refused_in_the_parent(run_ltxgen, tiny_words, tmp_path: Path):
    words = ("parallel.num_processes=4", "parallel.num_machines=3", "parallel.machine_rank=3", "request.height=100")
    result = run_ltxgen(*tiny_words, *words, cwd=tmp_path)
    assert result.code == 2
    for path in ("num_processes = 4", "machine_rank = 3", "main_process_ip", "main_process_port"):
        assert f"parallel.{path}: must be" in result.err
    assert "request.height = 100: " in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("exit_code", "spoken", "code", "message"),
    [
        (2, True, 2, ""),
        (1, True, 1, ""),
        (-9, True, 1, ""),
        (-11, False, 1, "rank 3 was killed by SIGSEGV"),
        (143, False, 1, "rank 3 was killed by SIGTERM"),
        (7, False, 1, "rank 3 ended with exit code 7 and no message"),
    ],
)
def test_what_a_failed_rank_is_told_as(exit_code: int, spoken: bool, code: int, message: str):
    first = ProcessFailure(local_rank=1, pid=1, exitcode=exit_code, error_file="none")
    later = ProcessFailure(local_rank=0, pid=2, exitcode=-15, error_file="none")
    later.timestamp = first.timestamp + 1
    failure = failure_of(ChildFailedError("ltxgen", {2: later, 3: first}), spoken)
    assert (failure.code, str(failure)) == (code, message)


def test_gpus_are_not_shared():
    assert gpu_problems(LaunchConfig(num_processes=2), num_gpus=2) == []
    assert gpu_problems(LaunchConfig(), num_gpus=1) == []
    assert gpu_problems(LaunchConfig(num_processes=8), num_gpus=None) == []
    (problem,) = gpu_problems(LaunchConfig(num_processes=3), num_gpus=2)
    assert str(problem).startswith("parallel.num_processes = 3: puts 3 processes on this machine, which has 2 GPUs")
    assert str(problem).endswith("the most is 2")


def test_two_machines(start, stored_run, tiny_words, tmp_path: Path):
    """Two launchers that meet over TCP, as on two machines; the second one writes nothing."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = (
        *tiny_words,
        "output.tensors=true",
        "runtime.threads=1",
        "parallel=ring",
        RANKS,
        "parallel.num_machines=2",
        "parallel.main_process_ip=127.0.0.1",
        f"parallel.main_process_port={port}",
    )
    second = start(*words, "parallel.machine_rank=1", "output.dir=second")
    first = start(*words, "parallel.machine_rank=0", "output.dir=first")
    code, out, err = first.wait()
    assert code == 0, err
    assert out.splitlines()[0] == str(tmp_path / "first/video.mp4")
    code, out, err = second.wait()
    assert (code, out) == (0, ""), err
    assert [path.name for path in tmp_path.iterdir()] == ["first"]
    mine, alone = (load_file(each / "tensors.safetensors") for each in (tmp_path / "first", stored_run()))
    for name in ("base.noise.video", "refine.noise.audio"):
        assert torch.equal(mine[name], alone[name])
    for name in ("refine.final.video", "refine.final.audio"):
        assert (mine[name] - alone[name]).norm() <= 1e-5 * alone[name].norm()


def test_the_command_line_of_several_machines(monkeypatch, tmp_path: Path):
    from accelerate.commands.launch import launch_command_parser

    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    config = LaunchConfig(8, 2, 1, "10.0.0.1", 4711)
    assert launch_problems(config) == gpu_problems(config, num_gpus=4) == []
    parsed = launch_command_parser().parse_args(accelerate_words(config, ["rank", "--debug"], tmp_path))
    assert (parsed.num_processes, parsed.num_machines, parsed.machine_rank) == (8, 2, 1)
    assert (parsed.main_process_ip, parsed.main_process_port) == ("10.0.0.1", 4711)
    assert (parsed.num_cpu_threads_per_process, parsed.multi_gpu, parsed.module) == (5, True, True)
    assert (parsed.training_script, parsed.training_script_args) == ("ltxgen", ["rank", "--debug"])


def test_a_frozen_config_is_the_same_or_refused(tmp_path: Path):
    config = {"name": "größer", "stages": {"b": {"steps": 0.1}, "a": None}}
    path = tmp_path / "config.json"
    sha256 = freeze(config, path)
    thawed = thaw(path, sha256)
    assert thawed == config
    assert list(thawed["stages"]) == ["b", "a"]
    path.write_text(path.read_text().replace("0.1", "0.2"))
    with pytest.raises(Refusal, match="was changed after the run was started"):
        thaw(path, sha256)


def gathered(*configs: dict) -> Callable[[object], list[object]]:
    """`gather` as the first rank sees it, for `agree`, which gathers hashes, then folders or configs."""
    alone = [agree_calls(config) for config in configs]
    turns = iter(range(3))
    return lambda value: [calls[turn] for turn in [next(turns)] for calls in alone]


def agree_calls(config: dict) -> list[object]:
    """What a rank hands to `gather`, call by call, when all agree (hash, folder) or not (hash, flat config)."""
    calls: list[object] = []

    def gather(value: object) -> list[object]:
        calls.append(value)
        return [value]

    agree(config, 2, gather)
    return calls


def composed(**values: object) -> dict:
    return {"parallel": {"machine_rank": 0}, "output": {"dir": "a"}, **values}


def test_ranks_agree_but_for_what_is_a_machines_own():
    first = composed(stages={"a": 1})
    second = {**composed(stages={"a": 1}), "parallel": {"machine_rank": 1}, "output": {"dir": "b"}}
    agreed = agree(second, 2, gathered(first, second))
    assert agreed["output"] == {"dir": "a"}
    assert agreed["parallel"] == {"machine_rank": 1, "num_processes": 2}


def test_another_order_of_stages_is_another_config():
    first, second = composed(stages={"a": 1, "b": 2}), composed(stages={"b": 2, "a": 1})
    hashes = [agree_calls(config)[0] for config in (first, second)]
    turns = iter([hashes, [json.loads('{"stages.a": 1}')] * 2])
    with pytest.raises(Refusal, match="another order on some ranks"):
        agree(first, 2, lambda value: next(turns))


def test_a_world_size_that_nobody_asked_for():
    check_world_size(None, 4)
    check_world_size(4, 4)
    with pytest.raises(Refusal, match="the launcher started 4 processes"):
        check_world_size(1, 4)
