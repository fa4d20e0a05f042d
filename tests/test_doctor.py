"""`ltxgen doctor`: each finding, its fix, and the exit code."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError

from ltxgen.config import compose
from ltxgen.doctor import machine, software
from ltxgen.media import trial

TINY = ("+recipe=ltx23_two_stage", "model=ltx23_tiny", "request=demo")
CPU = "runtime.device=cpu"
MATRIX = """
\tGPU0\tGPU1\tCPU Affinity\tNUMA Affinity
GPU0\t X \t{0}\t0-47\t0
GPU1\t{0}\t X \t0-47\t0

Legend:
  NV#  = Connection traversing a bonded set of # NVLinks
"""


@pytest.fixture
def examined(run_ltxgen, tmp_path: Path) -> Callable[..., tuple[int, dict[tuple[str, str], dict[str, Any]]]]:
    """`examined("runtime.device=cpu")`: the exit code and the findings by what they are about and their name."""

    def run(*words: str) -> tuple[int, dict[tuple[str, str], dict[str, Any]]]:
        result = run_ltxgen("doctor", "--json", *words, cwd=tmp_path)
        assert result.err == ""
        told = json.loads(result.out)
        problems = [each for each in told["findings"] if each["status"] == "problem"]
        assert told["counts"]["problem"] == len(problems)
        assert result.code == (1 if problems else 0)
        assert list(tmp_path.iterdir()) == []
        return result.code, {(each["about"], each["name"]): each for each in told["findings"]}

    return run


def test_a_machine_that_is_well(examined, monkeypatch):
    def connect(*arguments: Any) -> None:
        pytest.fail("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", connect)
    code, found = examined(CPU, "artifacts.folders=[models]")
    assert code == 0
    assert found["software", "torch"]["what"] == torch.__version__
    assert found["GPU", "cpu"]["status"] == "note"
    for name in ("H.264", "AAC"):
        assert found["codecs", name]["status"] == "ok"
    assert found["attention", "sdpa"]["status"] == "ok"
    assert "CUDA" in found["attention", "flash3"]["what"]
    assert found["folders", "ltxgen's cache"]["what"].startswith(os.environ["LTXGEN_CACHE"])
    assert {about for about, _ in found} == {"software", "GPU", "machine", "codecs", "attention", "hub", "folders"}


def test_it_reads_well(run_ltxgen, tmp_path: Path):
    result = run_ltxgen("doctor", CPU, cwd=tmp_path)
    assert (result.code, result.err) == (0, "")
    assert "what to do" in result.out
    assert result.out.splitlines()[-1].endswith(" 0 problem")


def test_a_recipe_that_would_run(examined):
    _, found = examined(*TINY, CPU)
    assert found["recipe", "ltx23_two_stage"]["what"] == "would run here"
    assert "GiB" in found["recipe", "memory"]["what"]


def test_a_recipe_that_would_not_run(examined, monkeypatch):
    disk = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: disk._replace(free=50 * 10**9))
    code, found = examined("+recipe=ltx23_two_stage", CPU, "request.height=100")
    assert code == 1
    assert "must be a multiple of 64" in found["recipe", "request.height = 100"]["what"]
    assert "is missing" in found["recipe", "artifacts.checkpoint.path"]["what"]
    assert "ltxgen fetch" in found["recipe", "artifacts"]["fix"]
    hub = found["folders", "hub's cache"]
    assert (hub["status"], hub["fix"]) == ("problem", "set HF_HUB_CACHE")
    assert "checkpoint 46.1 GB" in hub["what"]
    assert "79.2 GB in all" in hub["what"]


def test_no_word_of_the_token(run_ltxgen, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    for words in ((), ("--json",)):
        result = run_ltxgen("doctor", CPU, *words, cwd=tmp_path)
        assert "a token from HF_TOKEN" in result.out
        assert "verysecret" not in result.out + result.err


def test_no_login_and_no_network(examined, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, found = examined(CPU)
    assert code == 0
    assert "hf auth login" in found["hub", "login"]["fix"]
    assert found["hub", "network"]["fix"] == "unset HF_HUB_OFFLINE to fetch files"


def test_online_the_hub_is_asked(examined, monkeypatch):
    answers = {
        "Lightricks/LTX-2.3": None,
        "google/gemma-3-12b-it-qat-q4_0-unquantized": GatedRepoError.__new__(GatedRepoError),
    }

    def auth_check(repo: str) -> None:
        if answers[repo] is not None:
            raise answers[repo]

    monkeypatch.setattr(huggingface_hub, "auth_check", auth_check)
    _, found = examined(CPU, "--online")
    assert ("hub", "Lightricks/LTX-2.3") not in found  # HF_HUB_OFFLINE says so
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    _, found = examined(CPU, "--online")
    assert found["hub", "Lightricks/LTX-2.3"]["what"] == "this login may read it"
    gemma = found["hub", "google/gemma-3-12b-it-qat-q4_0-unquantized"]
    assert gemma["status"] == "note"
    assert "accept its licence at https://huggingface.co/google/gemma" in gemma["what"]
    answers["Lightricks/LTX-2.3"] = ConnectionAbortedError("no route")
    _, found = examined(CPU, "--online")
    assert found["hub", "Lightricks/LTX-2.3"]["what"].startswith("the hub can't be reached (ConnectionAbortedError)")


def test_codecs_are_really_tried(examined, monkeypatch):
    assert (trial.try_video(), trial.try_sound()) == (None, None)
    monkeypatch.setattr(trial, "VIDEO_ENCODER", "libx999")
    code, found = examined(CPU)
    assert code == 1
    assert "libx999" in found["codecs", "H.264"]["what"]
    assert "pip install" in found["codecs", "H.264"]["fix"]
    assert found["codecs", "AAC"]["status"] == "ok"


def test_packages_that_are_too_old_or_not_there(examined, monkeypatch):
    wanted = ["av>=999", "rich>=13", "nonesuch>=2", "pytest>=8; extra == 'dev'"]
    monkeypatch.setattr(software, "requires", lambda name: wanted)
    _, found = examined(CPU)
    assert (found["software", "av"]["status"], found["software", "av"]["fix"]) == ("problem", "pip install 'av>=999'")
    assert found["software", "nonesuch"]["what"] == "not installed"
    assert found["software", "rich"]["status"] == "ok"
    assert ("software", "pytest") not in found


@pytest.mark.parametrize(
    ("limits", "status", "fix"),
    [((100, 4096), "problem", "ulimit -n 1024"), ((512, 600), "note", "ulimit -n 600"), ((1024, 1024), "ok", "")],
)
def test_open_files(monkeypatch, limits, status, fix):
    actual = resource.getrlimit
    monkeypatch.setattr(
        resource, "getrlimit", lambda which: limits if which == resource.RLIMIT_NOFILE else actual(which)
    )
    (found,) = (each for each in machine.host() if each.name == "open files")
    assert (found.status, found.fix) == (status, fix)


@pytest.mark.parametrize(
    ("text", "status", "what"),
    [
        (None, "ok", "none is needed"),
        ("num_processes: 4\nmixed_precision: bf16\n", "ok", "only `accelerate launch` by hand goes by it"),
        ("use_cpu: true\nfsdp_config: {fsdp_version: 2}\n", "note", "sets use_cpu, fsdp_config"),
        ("fsdp_config: {}\nuse_cpu: false\n", "ok", "only `accelerate launch` by hand goes by it"),
        ("a: [", "note", "can't be read"),
    ],
)
def test_accelerate_config(tmp_path: Path, text, status, what):
    path = tmp_path / "default_config.yaml"
    if text is not None:
        path.write_text(text)
    (found,) = machine.accelerate_config(path)
    assert found.status == status
    assert what in found.what


def test_a_cache_that_cannot_be_written(examined, tmp_path_factory, monkeypatch):
    file = tmp_path_factory.mktemp("other") / "file"
    file.touch()
    monkeypatch.setenv("LTXGEN_CACHE", str(file / "cache"))
    code, found = examined(CPU)
    assert code == 0  # it costs, and stops no run
    assert found["folders", "ltxgen's cache"]["status"] == "note"
    assert "LTXGEN_CACHE" in found["folders", "ltxgen's cache"]["fix"]
    assert found["folders", "stages' outputs"]["status"] == "note"


def test_an_output_that_cannot_be_written(examined, tmp_path_factory):
    file = tmp_path_factory.mktemp("other") / "file"
    file.touch()
    code, found = examined(CPU, f"output.dir={file}/out")
    assert code == 1
    assert found["folders", "output"]["status"] == "problem"


@pytest.mark.parametrize(
    ("topology", "status", "what"),
    [
        (MATRIX.format("NV18"), "ok", "NVLink between all (NV18)"),
        (MATRIX.format("PHB"), "note", "no NVLink (PHB)"),
        ("", "note", "unknown"),
    ],
)
def test_links_between_gpus(topology, status, what):
    found = machine._links(topology)
    assert found.status == status
    assert found.what.startswith(what)


def test_the_driver(tmp_path: Path, monkeypatch):
    version = tmp_path / "version"
    version.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (dvs-builder)\n"
        "GCC version:  gcc version 12.3.0\n"
    )
    monkeypatch.setattr(machine, "_DRIVER", version)
    assert machine._driver() == "570.86.15"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--jsn",), "takes key=value, --json and --online"),
        (("+recipe=ltx23_two_stag",), "did you mean 'ltx23_two_stage'?"),
        (("cache.max_gib=much",), "cache.max_gib = much: must be a finite number"),
    ],
)
def test_doctor_refuses(run_ltxgen, tmp_path, words, message):
    result = run_ltxgen("doctor", *words, cwd=tmp_path)
    assert (result.code, result.out) == (2, "")
    assert message in result.err


def test_a_gpu_that_is_asked_for_and_not_there(examined, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, found = examined("runtime.device=cuda")
    assert code == 1
    assert found["GPU", "runtime.device"]["status"] == "problem"


def test_recipes_with_their_memory(run_ltxgen, tmp_path: Path):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "broken.yaml").write_text("# @package _global_\n# A broken one.\nname: broken\n")
    result = run_ltxgen("ls", "recipe", "--memory", CPU, cwd=tmp_path)
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    told = {name.split()[0]: memory.strip() for name, memory in zip(lines[::2], lines[1::2], strict=True)}
    assert told.pop("broken").startswith("memory is not known: stages: a recipe has stages")
    for memory in told.values():
        assert memory.startswith("GPU memory, predicted for ")
        assert "at least stream" in memory
    assert "for sound alone, 121 frames: " in told["ltx23_text_to_audio"]
    two_stage = told["ltx23_two_stage"]
    assert "for 1536x1024, 121 frames: " in two_stage
    plan = run_ltxgen("plan", "+recipe=ltx23_two_stage", "artifacts=synthetic", CPU, cwd=tmp_path).out.split()
    for policy in ("resident", "last_use", "stream"):  # as a plan says it
        peak = plan[plan.index(policy) + 1]
        assert f"{policy} {peak} GiB" in two_stage


def test_memory_with_other_values(run_ltxgen, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(compose, "groups", lambda: {"recipe": ["ltx23_two_stage"]})
    result = run_ltxgen("ls", "recipe", "--memory", CPU, "request=full_hd", cwd=tmp_path)
    assert "for 1920x1088, " in result.out
    wrong = run_ltxgen("ls", "recipe", "--memory", CPU, "request.height=100", cwd=tmp_path)
    assert "memory is not known: request.height = 100: must be a multiple of 64" in wrong.out
