"""Sweeps on the embedded model: what stays loaded, in which order jobs run, and what a crash leaves to be resumed."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from children import ended, killed_at_call, started, was_killed
from safetensors.torch import load_file

from ltxgen.config.errors import Refusal
from ltxgen.config.recipe import parse_recipe
from ltxgen.recipe import sweep as sweep_module
from ltxgen.recipe.sweep_folder import Job, SweepFolder
from ltxgen.recipe.sweep_jobs import PlannedJob, ordered
from ltxgen.stage.denoise import Denoise
from ltxgen.stage.denoiser import Denoiser

LATENTS_ONLY = ("~stages.decode_video", "~stages.decode_audio", "~stages.write")
SEEDS = "request.seed=1,2,3"
STRENGTHS = "stages.refine.loras.distilled=0.3,0.5,0.7"
COMPONENTS = {  # of a run that ends with latents
    "tokenizer",
    "text_encoder",
    "text_projection",
    "video_connector",
    "audio_connector",
    "transformer",
    "spatial_upscaler",
    "video_statistics",
}
CPU_SECONDS_A_JOB = 0.3  # about
ROUNDS = int(os.environ.get("LTXGEN_TEST_KILLS", "2"))  # 50 for a long test


def record_of(folder: Path) -> dict:
    return json.loads((folder / "sweep.json").read_text())


def statuses(folder: Path) -> list[str]:
    return [job["status"] for job in record_of(folder)["jobs"]]


def same_tensors(a: Path, b: Path) -> bool:
    mine, other = (load_file(folder / "tensors.safetensors") for folder in (a, b))
    return mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)


@pytest.fixture(scope="module")
def nine(run_ltxgen, tiny_words, tmp_path_factory) -> Path:
    """The folder of an undisturbed sweep of nine jobs, with tensors."""
    folder = tmp_path_factory.mktemp("sweep") / "out"
    words = (*tiny_words, *LATENTS_ONLY, STRENGTHS, SEEDS, "output.tensors=true", f"output.dir={folder}")
    result = run_ltxgen("-m", *words, cwd=folder.parent)
    assert result.code == 0, result.err
    return folder


def test_what_a_sweep_leaves(nine: Path):
    assert sorted(path.name for path in nine.iterdir()) == [".sweep", *map(str, range(9)), "index.html", "sweep.json"]
    jobs = record_of(nine)["jobs"]
    assert [(job["folder"], job["status"]) for job in jobs] == [(str(number), "done") for number in range(9)]
    for number, job in enumerate(jobs):
        strength, seed = ("0.3", "0.5", "0.7")[number // 3], (1, 2, 3)[number % 3]
        assert {f"stages.refine.loras.distilled={strength}", f"request.seed={seed}"} <= set(job["overrides"])
        manifest = json.loads((nine / str(number) / "manifest.json").read_text())
        assert manifest["request"]["seed"] == seed
        assert manifest["stages"]["refine"]["loras"] == {"distilled": float(strength)}


def test_each_component_is_loaded_once(nine: Path):
    assert record_of(nine)["loads"] == dict.fromkeys(COMPONENTS, 1)


def test_with_the_cache_only_what_changed_runs(run_ltxgen, tiny_words, tmp_path: Path):
    """Three strengths and three seeds: the prompt once, base once a seed, refine every time; weights once."""
    words = (*tiny_words, *LATENTS_ONLY, STRENGTHS, SEEDS, "cache=auto", f"cache.folder={tmp_path / 'cache'}")
    assert run_ltxgen("-m", *words, "output.dir=out", cwd=tmp_path).code == 0
    manifests = [json.loads((tmp_path / "out" / str(job) / "manifest.json").read_text()) for job in range(9)]
    ran = Counter(name for each in manifests for name, stage in each["stages"].items() if stage["from"] == "run")
    assert [ran[name] for name in ("prompt", "base", "upsample", "refine")] == [1, 3, 3, 9]
    assert record_of(tmp_path / "out")["loads"] == dict.fromkeys(COMPONENTS, 1)


@pytest.mark.parametrize("number", [1, 5])
def test_a_job_is_what_it_is_alone(nine: Path, run_ltxgen, tiny_words, tmp_path: Path, number: int):
    """Also after other jobs have fused their LoRAs into the same weights."""
    alone = tmp_path / "alone"
    words = [word for word in record_of(nine)["jobs"][number]["overrides"] if not word.startswith("output.dir")]
    assert run_ltxgen(*words, f"output.dir={alone}", cwd=tmp_path).code == 0
    assert same_tensors(nine / str(number), alone)


def test_a_failed_job_stops_no_other(run_ltxgen, tiny_words, tmp_path: Path, monkeypatch, nine: Path):
    run = Denoise.run

    def fail(self, *arguments):
        noise = arguments[0]["noise"]
        if noise._generator.initial_seed() == 2 and self.name == "refine":
            raise RuntimeError("the kernel is gone")
        return run(self, *arguments)

    monkeypatch.setattr(Denoise, "run", fail)
    words = (*tiny_words, *LATENTS_ONLY, "stages.refine.loras.distilled=0.3", SEEDS, "output.tensors=true")
    result = run_ltxgen("-m", *words, "output.dir=out", cwd=tmp_path)
    folder = tmp_path / "out"
    assert (result.code, result.out) == (1, "")
    assert "ltxgen: 1 job failed; `ltxgen resume out` tries again:\n  out/1: RuntimeError: the kernel" in result.err
    assert statuses(folder) == ["done", "failed", "done"]
    assert record_of(folder)["jobs"][1]["error"] == "RuntimeError: the kernel is gone"
    assert not (folder / "1").exists()
    assert same_tensors(folder / "2", nine / "2")

    monkeypatch.setattr(Denoise, "run", run)
    ran = monkeypatch_runs(monkeypatch)
    resumed = run_ltxgen("resume", "out", cwd=tmp_path)
    told = ["out/0", "out/1", "out/2", "out/index.html"]
    assert (resumed.code, resumed.out.split()) == (0, told), resumed.err
    assert ran == [1]
    assert statuses(folder) == ["done"] * 3
    assert same_tensors(folder / "1", nine / "1")


def monkeypatch_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Which jobs run from now on."""
    ran: list[int] = []
    run_plan = sweep_module.run_plan

    def told(plan, *rest, **options):
        ran.append(int(Path(plan.recipe.output.dir).name))
        return run_plan(plan, *rest, **options)

    monkeypatch.setattr(sweep_module, "run_plan", told)
    return ran


def test_all_jobs_are_checked_before_the_first(run_ltxgen, tiny_words, tmp_path: Path, monkeypatch):
    """Also their files, which only planning looks for."""
    ran = monkeypatch_runs(monkeypatch)
    words = ("request.height=64,100", "+artifacts.spatial_upscaler.path=null,nowhere.safetensors", "output.dir=out")
    result = run_ltxgen("-m", *tiny_words[:2], *tiny_words[3:], "artifacts.source=files", *words, cwd=tmp_path)
    assert result.code == 2
    assert "request.height = 100: must be a multiple of 64" in result.err
    assert "nowhere.safetensors" in result.err
    assert ran == []
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_over_its_own_folder_is_refused(run_ltxgen, tiny_words, tmp_path: Path):
    result = run_ltxgen("-m", *tiny_words, "output.dir=a,b", cwd=tmp_path)
    assert result.code == 2
    assert "output.dir = b: a sweep has one folder" in result.err
    assert list(tmp_path.iterdir()) == []


def test_jobs_that_share_what_is_loaded_run_one_after_another(run_ltxgen, tiny_words, tmp_path: Path, monkeypatch):
    ran = monkeypatch_runs(monkeypatch)
    words = (*tiny_words, *LATENTS_ONLY, "request.seed=1,2", "runtime.dtype=float32,bfloat16", "output.dir=out")
    result = run_ltxgen("-m", *words, cwd=tmp_path)
    assert result.code == 0, result.err
    assert ran == [0, 2, 1, 3]  # float32, then bfloat16; numbered as Hydra does
    loads = record_of(tmp_path / "out")["loads"]
    assert loads == dict.fromkeys(COMPONENTS, 2) | {"tokenizer": loads["tokenizer"]}


def planned(words: tuple[str, ...], number: int) -> PlannedJob:
    from ltxgen.config import compose
    from ltxgen.recipe.plan import make_plan

    config = compose.compose_config(compose.open_overrides(words))
    return PlannedJob(number, words, config, make_plan(parse_recipe(config)))


def test_the_order_of_jobs(tiny_words, tiny_set, offline):
    """The largest first: what holds the transformer, then LoRAs; else their numbers decide."""
    changes = [
        ("stages.refine.loras.distilled=0.5",),
        ("attention=reference",),
        ("stages.refine.loras.distilled=1.0",),
        ("attention=reference", "stages.refine.loras.distilled=0.5"),
        ("stages.refine.loras.distilled=0.5", "request.seed=3"),
    ]
    jobs = [planned((*tiny_words, *words), number) for number, words in enumerate(changes)]
    assert [job.number for job in ordered(jobs)] == [0, 4, 2, 3, 1]
    assert [job.number for job in ordered(jobs[::-1])] == [4, 0, 2, 3, 1]


def test_killed_again_and_again(nine: Path, tiny_words, run_ltxgen, tmp_path: Path):
    """A sweep is resumed after each kill -9, then the next one is killed; all end as if nobody had killed them."""
    words = ("-m", *tiny_words, *LATENTS_ONLY, STRENGTHS, SEEDS, "output.tensors=true")
    chance, sweeps, hits = random.Random(ROUNDS), 0, 0
    folder = tmp_path / "0"
    for _ in range(ROUNDS):
        next_words = ("resume", str(folder)) if (folder / "sweep.json").exists() else (*words, f"output.dir={folder}")
        seconds = chance.uniform(0, 9 * CPU_SECONDS_A_JOB)
        child = started(lambda now=next_words: run_ltxgen(*now, cwd=tmp_path).code)
        while is_running(child) and sum(psutil.Process(child).cpu_times()[:2]) < seconds:
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
        code = ended(child)
        hits += code == -signal.SIGKILL
        assert code in (0, -signal.SIGKILL)
        if not (folder / "sweep.json").exists():
            continue
        assert set(statuses(folder)) <= {"done", "pending"}
        for job, status in enumerate(statuses(folder)):
            assert status == "pending" or same_tensors(folder / str(job), nine / str(job))
        if "pending" not in statuses(folder):
            check_undisturbed(folder, nine, run_ltxgen)
            sweeps += 1
            folder = tmp_path / str(sweeps)
    if (folder / "sweep.json").exists():
        check_undisturbed(folder, nine, run_ltxgen)
    assert hits > 0


def is_running(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def check_undisturbed(folder: Path, nine: Path, run_ltxgen) -> None:
    result = run_ltxgen("resume", str(folder), cwd=folder.parent)
    assert result.code == 0, result.err
    assert statuses(folder) == ["done"] * 9
    assert all(same_tensors(folder / str(job), nine / str(job)) for job in range(9))
    assert [path for path in folder.rglob(".*") if "partial" in path.name] == []


def test_a_killed_job_goes_on_inside_a_stage(run_ltxgen, tiny_words, tmp_path: Path, monkeypatch):
    """Also where the cache is off: what it takes is kept with the run."""
    words = (*tiny_words, *LATENTS_ONLY, "stages.base.checkpoint_every=1", "request.seed=1,2", "output.dir=out")
    with killed_at_call(Denoiser, "__call__", 2):
        assert was_killed(lambda: run_ltxgen("-m", *words, cwd=tmp_path))
    result = run_ltxgen("resume", "out", cwd=tmp_path)
    assert result.code == 0, result.err
    stages = [json.loads((tmp_path / "out" / job / "manifest.json").read_text())["stages"] for job in "01"]
    assert [stages[0][name]["from"] for name in ("prompt", "base")] == ["cache", "run"]
    assert stages[0]["base"]["resumed after step"] == 1
    assert {stage["from"] for stage in stages[1].values()} == {"run"}


def test_the_disk_has_to_hold_all_jobs(run_ltxgen, tiny_words, tmp_path: Path, monkeypatch):
    """Each of the four would fit."""
    usage = SimpleNamespace(free=3 * 2**20)
    monkeypatch.setattr("ltxgen.media.files.shutil.disk_usage", lambda place: usage)
    result = run_ltxgen("-m", *tiny_words, "request.seed=1,2,3,4", "output.dir=out", cwd=tmp_path)
    assert (result.code, result.err.count("MiB are needed")) == (2, 1)
    assert "output.dir = out: for 4 jobs, the disk of" in result.err
    assert "has 3 MiB free and about 4 MiB are needed" in result.err
    assert list(tmp_path.iterdir()) == []


def some_sweep(path: Path) -> SweepFolder:
    folder = SweepFolder(path)
    config = {"output": {"dir": str(path / "0")}}
    folder.begin([Job(number, (f"request.seed={number}",), config) for number in (0, 1, 2)], anew=True)
    (path / "0").mkdir()
    (path / "0" / "video.mp4").write_text("whole")
    folder.done(0, 1.5, {"transformer": 1})
    folder.failed(1, "RuntimeError: no", {"transformer": 1})
    return folder


def test_what_is_left_to_do(tmp_path: Path):
    folder = some_sweep(tmp_path)
    assert folder.jobs() == {0: "done", 1: "failed", 2: "pending"}
    assert folder.errors() == {1: "RuntimeError: no"}
    assert folder.record["loads"] == {"transformer": 2}
    assert [job.number for job in folder.unfinished()] == [1, 2]
    assert folder.unfinished()[0].config["output"]["dir"] == str(tmp_path / "1")
    (tmp_path / "0" / "video.mp4").write_text("whol")
    assert [job.number for job in folder.unfinished()] == [0, 1, 2]
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert SweepFolder(moved).unfinished()[2].config["output"]["dir"] == str(moved / "2")


def test_a_sweep_of_its_own_folder_begins_anew(tmp_path: Path):
    folder = some_sweep(tmp_path)
    folder.begin([Job(0, ("a=1",), {"output": {}})], anew=True)
    assert folder.record == {"jobs": [{"folder": "0", "overrides": ["a=1"], "status": "pending"}], "loads": {}}
    folder.begin([Job(1, ("a=2",), {"output": {}})], anew=False)
    assert folder.jobs() == {0: "pending", 1: "pending"}


def test_one_command_at_a_time(tmp_path: Path):
    folder = some_sweep(tmp_path)
    with folder.alone(), pytest.raises(Refusal, match="another process works on this sweep"), folder.alone():
        pass
    with folder.alone():
        pass


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"jobs": [{"folder": "../0", "overrides": [], "status": "pending"}], "loads": {}}',
        '{"jobs": [{"folder": "/etc", "overrides": [], "status": "pending"}], "loads": {}}',
        '{"jobs": [{"folder": 5, "overrides": [], "status": "pending"}], "loads": {}}',
        '{"jobs": [{"folder": "0"}], "loads": {}}',
        '{"jobs": [{"folder": "0", "overrides": [], "status": "failed"}], "loads": {}}',
        '{"jobs": [5], "loads": {}}',
        "[" * 100_000,
    ],
    ids=range(10),
)
def test_a_record_that_is_none_is_refused(run_ltxgen, tmp_path: Path, text: str):
    (tmp_path / "sweep.json").write_text(text)
    result = run_ltxgen("resume", str(tmp_path), cwd=tmp_path)
    assert result.code == 2
    assert f"resume = {tmp_path}: its sweep.json is no record of a sweep that can be read" in result.err
    assert result.err.endswith(f"; start the sweep again with output.dir={tmp_path}\n")
    assert result.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json"]


def test_resume_of_nothing(run_ltxgen, tmp_path: Path):
    assert run_ltxgen("resume", cwd=tmp_path).code == 2
    assert run_ltxgen("resume", "nowhere", cwd=tmp_path).code == 2
    assert list(tmp_path.iterdir()) == []
