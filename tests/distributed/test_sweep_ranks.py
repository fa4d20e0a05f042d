"""Sweeps on two processes: one launch for all jobs of shared ranks, and a job at a time on each rank of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ltxgen
from ltxgen.config.errors import JobsFailed, Problem, Refusal
from ltxgen.parallel.ending import RankFailure
from ltxgen.parallel.jobs import JobsConfig
from ltxgen.recipe import sweep as sweep_module
from ltxgen.recipe.sweep import Sweep
from ltxgen.recipe.sweep_folder import Job

FAULTS = Path(__file__).parent / "faults"
LATENTS_ONLY = ("~stages.decode_video", "~stages.decode_audio", "~stages.write")
RANKS = "parallel.num_processes=2"


def sweep(cwd: Path, *words: str) -> tuple[int, str, dict]:
    """Exit code, stderr and sweep.json of a sweep into `cwd`/out, with its own processes."""
    path = os.pathsep.join(map(str, (FAULTS, Path(ltxgen.__file__).parent.parent)))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = (sys.executable, "-m", "ltxgen", "-m", *words, "runtime.threads=1", "output.dir=out")
    ran = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
    return ran.returncode, ran.stderr, json.loads((cwd / "out" / "sweep.json").read_text())


def test_one_launch_serves_all_jobs(tiny_words, tiny_set, offline, tmp_path: Path, stored_run):
    words = (*tiny_words, *LATENTS_ONLY, "request.seed=10,11", "output.tensors=true", "parallel=guidance", RANKS)
    code, err, record = sweep(tmp_path, *words)
    assert code == 0, err
    assert [job["status"] for job in record["jobs"]] == ["done", "done"]
    assert set(record["loads"].values()) == {1}, "a second launch would have loaded again"
    assert err.count("prompt: started") == 2, "one rank shows progress"
    for number, run in enumerate((stored_run(), stored_run("request.seed=11"))):
        mine, alone = (load_file(folder / "tensors.safetensors") for folder in (tmp_path / "out" / str(number), run))
        difference = (mine["refine.final.video"] - alone["refine.final.video"]).norm()
        assert difference <= 1e-5 * alone["refine.final.video"].norm()


def test_jobs_at_the_same_time(tiny_words, tiny_set, offline, tmp_path: Path, stored_run):
    """What each leaves is what one process leaves; together the ranks load each component at most twice."""
    words = (*tiny_words, *LATENTS_ONLY, "request.seed=10,11,12", "output.tensors=true", "parallel=jobs", RANKS)
    code, err, record = sweep(tmp_path, *words)
    assert code == 0, err
    assert [job["status"] for job in record["jobs"]] == ["done"] * 3
    assert set(record["loads"].values()) <= {1, 2}
    for number, run in enumerate((stored_run(), stored_run("request.seed=11"))):
        mine, alone = (load_file(folder / "tensors.safetensors") for folder in (tmp_path / "out" / str(number), run))
        assert all(torch.equal(mine[name], alone[name]) for name in mine)


def test_the_jobs_after_a_broken_one_get_another_launch(tiny_set, offline, tmp_path: Path):
    """Rank 1 is killed in the second job: that one failed, the others are done."""
    fault = ("name=fault", "model=ltx23_tiny", "request=demo", "+stages.fault.kind=fault", RANKS)
    code, err, record = sweep(tmp_path, *fault, "+stages.fault.how=nothing,kill,nothing2")
    assert code == 1
    assert [job["status"] for job in record["jobs"]] == ["done", "failed", "done"]
    assert record["jobs"][1]["error"].startswith("rank 1 was killed by SIGKILL")
    assert "ltxgen: 1 job failed; `ltxgen resume out` tries again:\n  out/1: rank 1 was killed" in err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".sweep",
        "0",
        "2",
        "index.html",
        "sweep.json",
    ]


def planned_words(run_ltxgen, tiny_words) -> dict:
    from ltxgen.config import compose

    words = (*tiny_words, *LATENTS_ONLY, "parallel=jobs", RANKS)
    return compose.compose_config(compose.open_overrides(words))


@pytest.mark.parametrize(("failing_rank", "failed"), [(0, 4), (1, 2)])
def test_which_job_a_dead_rank_had(run_ltxgen, tiny_words, tmp_path: Path, monkeypatch, failing_rank: int, failed: int):
    """Of the jobs that ranks claimed: rank 1 has job 2, rank 0 job 4; job 3 was not reached."""
    config = planned_words(run_ltxgen, tiny_words)
    jobs = [Job(number, (), {**config, "output": {**config["output"], "dir": str(tmp_path / str(number))}})
            for number in (2, 3, 4)]  # fmt: skip
    launches: list[int] = []

    def launch(parallel, words, logs):
        launches.append(len(json.loads(Path(words[1]).read_text())["jobs"]))
        claims = Path(words[3])
        if len(launches) == 1:
            (claims / "2").symlink_to("1")
            (claims / "4").symlink_to("0")
            raise RankFailure(1, "", failing_rank, "rank went away")
        for number in {2, 3, 4} - {failed}:
            (tmp_path / str(number)).mkdir()
            swept._folder.done(number, 1.0, {})

    monkeypatch.setattr(sweep_module, "launch", launch)
    swept = Sweep()
    with pytest.raises(JobsFailed, match=f"1 job failed.*\n  .*/{failed}: rank went away"):
        swept.run(jobs)
    assert launches == [3, 2]


def test_a_refusal_on_a_rank_is_no_failed_job(run_ltxgen, tiny_words, tmp_path: Path, monkeypatch):
    config = planned_words(run_ltxgen, tiny_words)
    job = Job(0, (), {**config, "output": {**config["output"], "dir": str(tmp_path / "0")}})

    def launch(*arguments):
        raise RankFailure(2)

    monkeypatch.setattr(sweep_module, "launch", launch)
    with pytest.raises(RankFailure):
        Sweep().run([job])
    assert json.loads((tmp_path / "sweep.json").read_text())["jobs"][0]["status"] == "pending"


def test_parallel_jobs_is_for_sweeps_on_one_machine(run_ltxgen, tiny_words, tmp_path: Path):
    alone = run_ltxgen(*tiny_words, "parallel=jobs", RANKS, cwd=tmp_path)
    assert (alone.code, alone.err) == (
        2,
        "ltxgen: parallel = jobs: is for sweeps: add -m, or take another choice of parallel\n",
    )
    (problem,) = JobsConfig(num_processes=4, num_machines=2).problems("parallel", 4, 4, {})
    assert isinstance(problem, Problem)
    assert "submitit" in str(problem)
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_under_accelerate_launch_refuses_parallel_jobs(run_ltxgen, tiny_words, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(Refusal, match="starts its processes itself"):
        Sweep().run([Job(0, (), planned_words(run_ltxgen, tiny_words))])
