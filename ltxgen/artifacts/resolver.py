"""Finds every wanted artifact: newest candidate first, in an ordered chain of places, with the reason for each choice.

Places, in order: the user's own path, local folders, the Hugging Face cache, and the hub itself, which is asked only by
`fetch` or where the run says `artifacts.download=true`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ltxgen.artifacts.artifact import ArtifactSpec, Attempt, Candidate, ResolvedArtifact
from ltxgen.artifacts.check import is_whole
from ltxgen.artifacts.generation import generation_of_file
from ltxgen.artifacts.hashing import sha256_of
from ltxgen.artifacts.hub import (
    DownloadFailed,
    cache_folder_of_hub,
    download,
    find_cached,
    is_offline,
    shown_size,
)
from ltxgen.artifacts.pins import as_pinned, find_pinned, other_content, pin_of
from ltxgen.artifacts.synthetic import synthetic_artifact
from ltxgen.artifacts.tiny import embedded_artifact
from ltxgen.config.errors import MISSING, Problem

Log = Callable[[str], None]

HUB_CACHE = "Hugging Face cache"
HUB = "Hugging Face hub"


def _silent(message: str) -> None:
    del message


@dataclass(frozen=True)
class Places:
    """Where to look. `hub_cache` None means huggingface_hub's own; `download` allows the hub during a run."""

    folders: tuple[str, ...] = ("./models",)
    hub_cache: str | None = None
    download: bool = False

    def folder_paths(self) -> tuple[Path, ...]:
        """Local folders, absolute: the configured ones, then those of LTXGEN_MODELS (separated like PATH)."""
        extra = [part for part in os.environ.get("LTXGEN_MODELS", "").split(os.pathsep) if part]
        return tuple(Path(folder).expanduser().absolute() for folder in (*self.folders, *extra))

    @property
    def hub_cache_path(self) -> Path | None:
        return Path(self.hub_cache).expanduser().absolute() if self.hub_cache else None


@dataclass(frozen=True)
class Resolution:
    """What was found, by artifact name, everything that is wrong, and what was looked at for what was not found."""

    artifacts: Mapping[str, ResolvedArtifact]
    problems: tuple[Problem, ...]
    tried: Mapping[str, tuple[Attempt, ...]] = field(default_factory=dict)


def resolve_all(specs: Iterable[ArtifactSpec], places: Places, log: Log = _silent) -> Resolution:
    """Resolve all artifacts; problems are collected, none is raised.

    Missing ones get a line each and one closing line on how to get them. Nothing is downloaded unless
    `places.download`; each download is announced through `log`.
    """
    specs = tuple(specs)
    found: dict[str, ResolvedArtifact] = {}
    problems: list[Problem] = []
    tried: dict[str, tuple[Attempt, ...]] = {}
    missing: list[ArtifactSpec] = []
    for spec in specs:
        outcome = _locate(spec, places)
        if isinstance(outcome, _Missing) and places.download:
            outcome = _download_newest(spec, places, outcome, log)
        if isinstance(outcome, ResolvedArtifact):
            found[spec.name] = outcome
        elif isinstance(outcome, Problem):
            problems.append(outcome)
        else:
            missing.append(spec)
            tried[spec.name] = outcome.tried
            problems.append(_missing_problem(spec, places, outcome))
    if missing:
        problems.append(_how_to_get(missing, places))
    return Resolution(found, tuple(problems), tried)


def fetch(specs: Iterable[ArtifactSpec], places: Places, log: Log = _silent, *, newest: bool = False) -> Resolution:
    """Download what is missing or broken in the Hugging Face cache, and verify it; problems are collected.

    newest=True also downloads a newest candidate of which an older one is here. Published digests are verified.
    """
    found: dict[str, ResolvedArtifact] = {}
    problems: list[Problem] = []
    for spec in specs:
        outcome = _locate(spec, places)
        if isinstance(outcome, ResolvedArtifact) and _should_stay(outcome, spec, newest):
            log(f"{spec.name}: {outcome.path or 'synthetic'} is here ({outcome.reason})")
        elif not isinstance(outcome, Problem) and spec.candidates:
            tried = outcome.tried
            outcome = _download_newest(spec, places, _Missing(tried), log)
        if isinstance(outcome, _Missing):
            outcome = _missing_problem(spec, places, outcome)
        if isinstance(outcome, ResolvedArtifact):
            outcome = _verified(outcome, spec, log)
        if isinstance(outcome, Problem):
            problems.append(outcome)
        else:
            found[spec.name] = outcome
    return Resolution(found, tuple(problems))


@dataclass(frozen=True)
class _Missing:
    tried: tuple[Attempt, ...]


def _locate(spec: ArtifactSpec, places: Places) -> ResolvedArtifact | Problem | _Missing:
    """Look without the network."""
    if spec.path is not None:
        return as_pinned(spec, _explicit(spec))
    if spec.source == "embedded":
        return embedded_artifact(spec)
    if spec.source == "synthetic":
        return synthetic_artifact(spec)
    tried: list[Attempt] = []
    for candidate in spec.candidates:
        for place, path, revision in _local_places(candidate, places):
            if path is None:
                tried.append(Attempt(candidate, place, "not there"))
                continue
            if spec.sha256 is not None and (other := other_content(path, spec.sha256)):
                tried.append(Attempt(candidate, place, other))
                continue
            generation = generation_of_file(path)
            if refusal := _other_generation(spec, generation):
                tried.append(Attempt(candidate, place, refusal))
                continue
            return ResolvedArtifact(
                name=spec.name,
                path=path,
                place=place,
                reason=_reason(spec, candidate, place),
                repo=candidate.repo,
                revision=revision,
                file=candidate.file or None,
                generation=generation,
                tried=tuple(tried),
                config_path=spec.config_path,
            )
    return find_pinned(spec, places.folder_paths()) or _Missing(tuple(tried))


def _explicit(spec: ArtifactSpec) -> ResolvedArtifact | Problem:
    assert spec.path is not None
    path = Path(spec.path).expanduser().absolute()
    if not path.exists():
        return Problem(spec.config_path, spec.path, f"does not exist (looked at {path})")
    generation = generation_of_file(path)
    if refusal := _other_generation(spec, generation):
        return Problem(spec.config_path, spec.path, refusal)
    return ResolvedArtifact(
        name=spec.name,
        path=path,
        place=f"set by {spec.config_path}",
        reason=f"set by {spec.config_path}",
        file=path.name,
        generation=generation,
        config_path=spec.config_path,
    )


def _local_places(candidate: Candidate, places: Places) -> Iterable[tuple[str, Path | None, str | None]]:
    """(place, path or None, revision) of a candidate, in order, without the network."""
    repo_name = candidate.repo.rpartition("/")[2]
    for folder in places.folder_paths():
        inside = (candidate.repo, repo_name) if candidate.is_folder else ("", candidate.repo, repo_name)
        paths = [folder / part / candidate.file for part in inside]
        here = next((path for path in paths if path.is_dir() == candidate.is_folder and path.exists()), None)
        yield str(folder), here, None
    cached = find_cached(candidate, places.hub_cache_path)
    yield HUB_CACHE, cached.path if cached else None, cached.revision if cached else None


def _other_generation(spec: ArtifactSpec, generation: str | None) -> str | None:
    if spec.generation is None or generation is None or generation == spec.generation:
        return None
    return (
        f"is made for {generation}, and this run needs {spec.generation}: latents, LoRAs and upscalers of generations "
        f"don't mix; use a file for {spec.generation} or a recipe for {generation}"
    )


def _reason(spec: ArtifactSpec, candidate: Candidate, place: str) -> str:
    index = spec.candidates.index(candidate)
    if index == 0:
        return f"newest candidate, found in {place}" if len(spec.candidates) > 1 else f"found in {place}"
    newer = ", ".join(other.file or other.repo for other in spec.candidates[:index])
    return f"found in {place}; preferred but not here: {newer}"


def _download_newest(
    spec: ArtifactSpec, places: Places, missing: _Missing, log: Log
) -> ResolvedArtifact | Problem | _Missing:
    """Download the first candidate that the hub has."""
    tried = list(missing.tried)
    for candidate in spec.candidates:
        log(
            f"{spec.name}: downloading {candidate.label} ({shown_size(candidate.size_bytes)}) into "
            f"{cache_folder_of_hub(places.hub_cache_path)}"
        )
        try:
            artifact = _downloaded(spec, candidate, places)
            if not is_whole(artifact):
                log(f"{spec.name}: {artifact.path} is damaged, downloading it again")
                artifact = _downloaded(spec, candidate, places, again=True)
        except DownloadFailed as failure:
            if not failure.not_there:
                return Problem(spec.config_path, candidate.label, str(failure))
            tried.append(Attempt(candidate, HUB, str(failure)))
            continue
        assert artifact.path is not None, "a download is a file"
        refusal = _other_generation(spec, artifact.generation)
        if refusal is None and spec.sha256 is not None:
            refusal = other_content(artifact.path, spec.sha256)
        if refusal:
            tried.append(Attempt(candidate, HUB, refusal))
            continue
        return replace(artifact, tried=tuple(tried))
    return _Missing(tuple(tried))


def _downloaded(spec: ArtifactSpec, candidate: Candidate, places: Places, *, again: bool = False) -> ResolvedArtifact:
    got = download(candidate, places.hub_cache_path, again=again)
    return ResolvedArtifact(
        name=spec.name,
        path=got.path,
        place=HUB,
        reason=f"downloaded from {candidate.label}",
        repo=candidate.repo,
        revision=got.revision,
        file=candidate.file or None,
        generation=generation_of_file(got.path),
        config_path=spec.config_path,
    )


def _should_stay(artifact: ResolvedArtifact, spec: ArtifactSpec, newest: bool) -> bool:
    """Whether nothing has to be downloaded for an artifact that is here."""
    if artifact.place != HUB_CACHE:
        # A file that the user placed, or that has no file, is not replaced behind their back; checks report it.
        return True
    if not is_whole(artifact):
        return False
    is_newest = (artifact.repo, artifact.file or "") == (spec.candidates[0].repo, spec.candidates[0].file)
    return is_newest or not newest


def _verified(artifact: ResolvedArtifact, spec: ArtifactSpec, log: Log) -> ResolvedArtifact | Problem:
    published = next(
        (
            candidate.sha256
            for candidate in spec.candidates
            if candidate.sha256 and (candidate.repo, candidate.file) == (artifact.repo, artifact.file)
        ),
        None,
    )
    if published is None or artifact.path is None:
        return artifact
    log(f"{spec.name}: verifying the sha256 of {artifact.path}")
    digest = sha256_of(artifact.path, verify=True)
    if digest != published:
        message = f"has sha256 {digest}, but {published} was published; delete it and run `ltxgen fetch` again"
        return Problem(spec.config_path, str(artifact.path), message)
    return replace(artifact, reason=f"{artifact.reason}; sha256 is the published one")


def _missing_problem(spec: ArtifactSpec, places: Places, missing: _Missing) -> Problem:
    if spec.sha256 is not None and not spec.candidates:
        message = f"must be {pin_of(spec)}, which is in no folder of `artifacts.folders`; set it to where the file is"
        return Problem(spec.config_path, MISSING, message)
    if not spec.candidates:
        return Problem(spec.config_path, MISSING, "must be set: no published file is known for it")
    newest = spec.candidates[0]
    looked = ", ".join((*map(str, places.folder_paths()), HUB_CACHE))
    parts = [f"{newest.label} ({shown_size(newest.size_bytes)}) is missing; looked in {looked}"]
    parts += [str(attempt) for attempt in missing.tried if attempt.why_not != "not there"]
    for other in spec.others:
        for place, path, _ in _local_places(other, places):
            if path is not None:
                parts.append(
                    f"{path.name} in {place} is of another generation than {spec.generation} and can't stand in"
                )
    return Problem(spec.config_path, MISSING, "; ".join(parts))


def _how_to_get(missing: list[ArtifactSpec], places: Places) -> Problem:
    sizes = [spec.candidates[0].size_bytes for spec in missing if spec.candidates]
    total = shown_size(sum(size for size in sizes if size is not None))
    folders = places.folder_paths()
    offline = " (HF_HUB_OFFLINE is set: unset it first)" if is_offline() else ""
    ways = [f"`ltxgen fetch` with the same recipe downloads them, {total} in all{offline}"]
    gated = [spec for spec in missing if spec.gated and spec.licence_url]
    if gated:
        pages = " and ".join(dict.fromkeys(str(spec.licence_url) for spec in gated))
        ways.append(f"first accept the licence at {pages} and log in with `hf auth login` (or set HF_TOKEN)")
    licences = dict.fromkeys(str(spec.licence_url) for spec in missing if spec.licence_url and not spec.gated)
    if licences:
        ways.append(f"their licence: {' and '.join(licences)}")
    ways.append(
        f"files you have: put them into {folders[0] if folders else 'a folder named by LTXGEN_MODELS'} or set "
        f"{missing[0].config_path}=FILE"
    )
    ways.append("to try ltxgen now, without any download: model=ltx23_tiny (random weights)")
    return Problem("artifacts", MISSING, "how to get what is missing:\n  - " + "\n  - ".join(ways))
