"""The resolver's order of candidates and places, its reasons, and what a user reads when something is missing."""

import errno
import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors.torch import save_file

from ltxgen.artifacts import hub, resolver
from ltxgen.artifacts.artifact import ArtifactSpec, Candidate, ResolvedArtifact
from ltxgen.artifacts.catalog import DISTILLED_LORA, LTX23_SPECS, candidate
from ltxgen.artifacts.resolver import Places, fetch, resolve_all

REPO = "owner/model"
NEW = Candidate(REPO, "ltx-2.3-thing-1.1.safetensors", size_bytes=1_500_000_000)
OLD = Candidate(REPO, "ltx-2.3-thing-1.0.safetensors")
SPEC = ArtifactSpec("thing", (NEW, OLD), licence_url="https://example.org/licence")


@pytest.fixture(autouse=True)
def _nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("LTXGEN_CACHE", str(tmp_path / "own_cache"))
    monkeypatch.delenv("LTXGEN_MODELS", raising=False)

    def no_network(*args, **kwargs):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(hub, "hf_hub_download", no_network)
    monkeypatch.setattr(hub, "snapshot_download", no_network)


def places(tmp_path: Path, **options) -> Places:
    return Places(folders=(str(tmp_path / "models"),), hub_cache=str(tmp_path / "hub"), **options)


def write(path: Path, version: str | None = None, adaln: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"config": json.dumps({"transformer": {"cross_attention_adaln": adaln}})}
    save_file({"t": torch.zeros(2)}, path, metadata | ({"model_version": version} if version else {}))
    return path


def put_in_hub_cache(tmp_path: Path, wanted: Candidate, commit: str = "c0ffee") -> Path:
    repo = tmp_path / "hub" / f"models--{wanted.repo.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True, exist_ok=True)
    (repo / "refs" / "main").write_text(commit)
    return write(repo / "snapshots" / commit / wanted.file, "2.3.0")


def one(resolution) -> ResolvedArtifact:
    assert not resolution.problems, "\n".join(map(str, resolution.problems))
    (artifact,) = resolution.artifacts.values()
    return artifact


def test_newest_candidate_first_whatever_its_place(tmp_path: Path):
    old = write(tmp_path / "models" / OLD.file, "2.3.0")
    found = one(resolve_all([SPEC], places(tmp_path)))
    assert found.path == old
    assert NEW.file in found.reason
    assert [(a.candidate, a.why_not) for a in found.tried] == [(NEW, "not there")] * 2
    # A newer one wins although its place comes later.
    new = put_in_hub_cache(tmp_path, NEW)
    found = one(resolve_all([SPEC], places(tmp_path)))
    assert (found.path, found.revision, found.repo, found.file) == (new, "c0ffee", REPO, NEW.file)
    assert found.reason == "newest candidate, found in Hugging Face cache"


@pytest.mark.parametrize("inside", ["", REPO, "model"])
def test_local_folder_before_cache_in_three_layouts(tmp_path: Path, inside: str):
    put_in_hub_cache(tmp_path, NEW)
    local = write(tmp_path / "models" / inside / NEW.file, "2.3.0")
    assert one(resolve_all([SPEC], places(tmp_path))).path == local


def test_folders_of_the_environment_come_after_the_configured_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    extra = write(tmp_path / "extra" / NEW.file, "2.3.0")
    monkeypatch.setenv("LTXGEN_MODELS", f"{tmp_path / 'nothing'}:{tmp_path / 'extra'}")
    assert one(resolve_all([SPEC], places(tmp_path))).path == extra
    local = write(tmp_path / "models" / NEW.file, "2.3.0")
    assert one(resolve_all([SPEC], places(tmp_path))).path == local


def test_explicit_path_is_the_only_choice(tmp_path: Path):
    write(tmp_path / "models" / NEW.file, "2.3.0")
    mine = write(tmp_path / "mine.safetensors", "2.3.1")
    found = one(resolve_all([ArtifactSpec("thing", (NEW,), path=str(mine))], places(tmp_path)))
    assert found.path == mine
    assert found.reason == "set by artifacts.thing.path"
    missing = resolve_all([ArtifactSpec("thing", (NEW,), path=str(tmp_path / "none"))], places(tmp_path))
    (problem,) = missing.problems
    assert problem.path == "artifacts.thing.path"
    assert "does not exist" in problem.message


@pytest.mark.parametrize(
    ("version", "adaln", "generation"),
    [
        ("2.3.0", True, "LTX-2.3"),
        ("2.0", False, "LTX-2"),
        (None, False, "LTX-2"),
        (None, True, "LTX-2.3"),
        ("2.0.0", True, "LTX-2.3"),
        ("2.5.0", True, "LTX-2.5"),
    ],
)
def test_generation_from_version_then_from_the_architecture(tmp_path: Path, version, adaln, generation):
    path = write(tmp_path / "any.safetensors", version, adaln)
    resolution = resolve_all([ArtifactSpec("checkpoint", path=str(path))], places(tmp_path))
    if generation == "LTX-2.3":
        assert one(resolution).generation == generation
    else:
        (problem,) = resolution.problems
        assert f"is made for {generation}, and this run needs LTX-2.3" in problem.message


def test_another_generation_under_a_wanted_name_is_passed_over_and_explained(tmp_path: Path):
    write(tmp_path / "models" / NEW.file, "2.0", adaln=False)
    old = write(tmp_path / "models" / OLD.file, "2.3.0")
    found = one(resolve_all([SPEC], places(tmp_path)))
    assert found.path == old
    assert "is made for LTX-2," in found.tried[0].why_not
    old.unlink()
    message = str(resolve_all([SPEC], places(tmp_path)).problems[0])
    assert "is made for LTX-2," in message


def test_files_of_another_generation_by_name(tmp_path: Path):
    lora = tmp_path / "ltx-2-19b-distilled-lora-384.safetensors"
    save_file({"t": torch.zeros(1)}, lora)
    spec = ArtifactSpec("distilled_lora", DISTILLED_LORA, path=str(lora))
    (problem,) = resolve_all([spec], places(tmp_path)).problems
    assert "is made for LTX-2, and this run needs LTX-2.3" in problem.message
    # The same file in a local folder explains why it does not stand in.
    (tmp_path / "models").mkdir()
    lora.rename(tmp_path / "models" / lora.name)
    problems = resolve_all([LTX23_SPECS["distilled_lora"]], places(tmp_path)).problems
    assert f"{lora.name} in" in problems[0].message
    assert "can't stand in" in problems[0].message


def test_all_missing_files_in_one_message(tmp_path: Path):
    resolution = resolve_all(LTX23_SPECS.values(), places(tmp_path))
    text = "\n".join(map(str, resolution.problems))
    for name in LTX23_SPECS:
        assert f"artifacts.{name}.path: " in text
    for part in (
        "ltx-2.3-22b-dev.safetensors (46.1 GB) is missing",
        "ltxgen fetch",
        "hf auth login",
        "HF_TOKEN",
        "https://huggingface.co/google/gemma-3-12b-it-qat-q4_0-unquantized",
        "https://huggingface.co/Lightricks/LTX-2.3",
        str(tmp_path / "models"),
        "artifacts.checkpoint.path=FILE",
        "model=ltx23_tiny",
    ):
        assert part in text
    assert text.count("how to get") == 1


def test_published_order_and_the_mistyped_name_last():
    files = [candidate.file for candidate in LTX23_SPECS["distilled_lora"].candidates]
    assert files == [
        "ltx-2.3-22b-distilled-lora-384-1.1.safetensors",
        "ltx-2.3-22b-distilled-lora-384.safetensors",
        "ltx-2.3-20b-distilled-lora-384.safetensors",
    ]
    assert candidate("Lightricks/LTX-2.3", files[0]).size_bytes == 7_605_507_256
    assert candidate("Lightricks/LTX-2.3", "ltx-2.3-22b-dev.safetensors", "abc").sha256 is None


@pytest.mark.parametrize(
    ("file", "distilled"),
    [
        ("ltx-2.3-22b-distilled-1.1.safetensors", True),
        ("ltx-2.3-22b-distilled-lora-384.safetensors", False),
        ("ltx-2.3-22b-dev.safetensors", False),
    ],
)
def test_distilled_checkpoints_are_told_by_name(file: str, distilled: bool):
    artifact = ResolvedArtifact("checkpoint", Path("/any") / file, place="", reason="")
    assert artifact.is_distilled is distilled


def test_a_run_downloads_only_when_allowed_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def get(repo, file, revision=None, cache_dir=None, force_download=False):
        asked.append(file)
        return str(put_in_hub_cache(tmp_path, NEW))

    monkeypatch.setattr(hub, "hf_hub_download", get)
    assert resolve_all([SPEC], places(tmp_path)).problems
    assert asked == []
    said: list[str] = []
    found = one(resolve_all([SPEC], places(tmp_path, download=True), said.append))
    assert asked == [NEW.file]
    assert found.place == "Hugging Face hub"
    assert "downloading owner/model/ltx-2.3-thing-1.1.safetensors (1.5 GB)" in said[0]
    # It is in the cache now and not asked for again.
    one(resolve_all([SPEC], places(tmp_path, download=True)))
    one(fetch([SPEC], places(tmp_path)))
    assert asked == [NEW.file]


def test_fetch_takes_the_next_candidate_when_the_hub_has_no_newer_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def get(repo, file, revision=None, cache_dir=None, force_download=False):
        if file == NEW.file:
            raise EntryNotFoundError("404")
        return str(put_in_hub_cache(tmp_path, OLD))

    monkeypatch.setattr(hub, "hf_hub_download", get)
    found = one(fetch([SPEC], places(tmp_path)))
    assert found.file == OLD.file
    assert any("holds no ltx-2.3-thing-1.1" in attempt.why_not for attempt in found.tried)


def test_fetch_keeps_an_older_file_unless_the_newest_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    put_in_hub_cache(tmp_path, OLD)
    monkeypatch.setattr(hub, "hf_hub_download", lambda *a, **k: str(put_in_hub_cache(tmp_path, NEW)))
    assert one(fetch([SPEC], places(tmp_path))).file == OLD.file
    assert one(fetch([SPEC], places(tmp_path), newest=True)).file == NEW.file


def test_fetch_downloads_a_broken_cached_file_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = put_in_hub_cache(tmp_path, NEW)
    path.write_bytes(path.read_bytes()[:-1])
    forced = []

    def get(repo, file, revision=None, cache_dir=None, force_download=False):
        forced.append(force_download)  # the hub's client keeps what its cache holds unless it is forced
        return str(put_in_hub_cache(tmp_path, NEW) if force_download else path)

    monkeypatch.setattr(hub, "hf_hub_download", get)
    one(fetch([SPEC], places(tmp_path)))
    assert forced == [False, True]


def test_fetch_of_a_folder_asks_for_its_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = {}

    def get(repo, **options):
        asked.update(options, repo=repo)
        raise GatedRepoError("gated", response=response(403))

    monkeypatch.setattr(hub, "snapshot_download", get)
    monkeypatch.setattr(hub, "_check_space", lambda *args: None)
    (problem,) = fetch([LTX23_SPECS["text_encoder"]], places(tmp_path)).problems
    assert "gated" in problem.message
    assert asked["repo"] == "google/gemma-3-12b-it-qat-q4_0-unquantized"
    assert {"*.safetensors", "*.json"} <= set(asked["allow_patterns"])


def test_fetch_verifies_the_published_digest(tmp_path: Path):
    path = put_in_hub_cache(tmp_path, NEW)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    good = ArtifactSpec("thing", (Candidate(REPO, NEW.file, sha256=digest),))
    assert "sha256 is the published one" in one(fetch([good], places(tmp_path))).reason
    bad = ArtifactSpec("thing", (Candidate(REPO, NEW.file, sha256="0" * 64),))
    (problem,) = fetch([bad], places(tmp_path)).problems
    assert digest in problem.message
    assert "was published" in problem.message


def response(status: int) -> SimpleNamespace:
    """What huggingface_hub reads of a response, whichever HTTP library it uses."""
    request = SimpleNamespace(method="GET", url="https://huggingface.co/owner/model")
    return SimpleNamespace(status_code=status, headers={}, request=request, url=request.url)


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (
            GatedRepoError("gated", response=response(403)),
            ["gated", "accept its licence", "hf auth login"],
        ),
        (RepositoryNotFoundError("404", response=response(404)), ["is missing", "does not exist on the hub"]),
        (HfHubHTTPError("401", response=response(401)), ["401", "hf auth login"]),
        (HfHubHTTPError("403", response=response(403)), ["may not read", "accept its licence"]),
        (HfHubHTTPError("500", response=response(500)), ["the hub answered 500", "ltxgen fetch"]),
        (LocalEntryNotFoundError("no"), ["can't be reached", "network"]),
        (OfflineModeIsEnabled("off"), ["HF_HUB_OFFLINE", "unset it"]),
        (OSError(errno.ENOSPC, "full"), ["is full", "HF_HUB_CACHE"]),
        (OSError(errno.EACCES, "denied"), ["can't be written", "HF_HUB_CACHE"]),
        (ConnectionResetError("reset"), ["ConnectionResetError", "resume"]),
    ],
)
def test_failed_downloads_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error, parts):
    def get(*args, **kwargs):
        raise error

    monkeypatch.setattr(hub, "hf_hub_download", get)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)  # other tests set it for the session
    resolution = fetch([SPEC], places(tmp_path))
    assert not resolution.artifacts
    text = "\n".join(map(str, resolution.problems))
    assert text.startswith("artifacts.thing.path")
    for part in parts:
        assert part in text


def test_a_download_that_cannot_fit_is_not_started(tmp_path: Path):
    huge = ArtifactSpec("thing", (Candidate(REPO, NEW.file, size_bytes=10**18),))
    (problem,) = fetch([huge], places(tmp_path)).problems
    assert "free" in problem.message


def test_other_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(resolver, "embedded_artifact", lambda spec: ResolvedArtifact(spec.name, tmp_path, "e", "r"))
    resolution = resolve_all(
        [
            ArtifactSpec("checkpoint", (NEW,), source="embedded"),
            ArtifactSpec("distilled_lora", source="synthetic"),
            ArtifactSpec("nothing", source="synthetic"),
            ArtifactSpec("wrong", source="synthetic", architecture="ltx23_22c"),
        ],
        places(tmp_path),
    )
    assert resolution.artifacts["checkpoint"].path == tmp_path
    assert resolution.artifacts["distilled_lora"].is_synthetic
    messages = [problem.message for problem in resolution.problems]
    assert "has no nothing" in messages[0]
    assert "did you mean 'ltx23_22b'?" in messages[1]


def test_digest_is_remembered_by_size_and_time_and_taken_from_the_hub_cache(tmp_path: Path, monkeypatch):
    from ltxgen.artifacts import hashing

    path = write(tmp_path / "file.safetensors", "2.3.0")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    artifact = ResolvedArtifact("x", path, place="", reason="")
    assert artifact.sha256 == digest
    monkeypatch.setattr(hashing, "_digest", lambda path, ended: "read again")
    assert artifact.sha256 == digest
    write(path, "2.3.10")
    assert artifact.sha256 == "read again"
    blob = tmp_path / "blobs" / ("ab" * 32)
    blob.parent.mkdir()
    blob.write_bytes(b"x")
    link = tmp_path / "link.safetensors"
    link.symlink_to(blob)
    assert ResolvedArtifact("x", link, place="", reason="").sha256 == "ab" * 32
