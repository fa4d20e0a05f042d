"""Artifacts pinned by content: a locked recipe names each file's sha256, and that file will do wherever it is."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ltxgen.artifacts.artifact import ArtifactSpec, ResolvedArtifact
from ltxgen.artifacts.generation import generation_of_file
from ltxgen.artifacts.hashing import remembered_places, sha256_of
from ltxgen.config.errors import Problem


def other_content(path: Path, sha256: str) -> str | None:
    """What is wrong with the content of `path`, if it isn't the pinned one."""
    found = sha256_of(path)
    return None if found == sha256 else f"has sha256 {found}, and the recipe pins {sha256}"


def as_pinned(spec: ArtifactSpec, found: ResolvedArtifact | Problem) -> ResolvedArtifact | Problem:
    """What was found at the user's own path, if it is the pinned file."""
    if spec.sha256 is None or isinstance(found, Problem):
        return found
    assert found.path is not None, "a path was set"
    wrong = other_content(found.path, spec.sha256)
    if wrong is None:
        return found
    free = f"artifacts.{spec.name}.sha256=null"
    return Problem(spec.config_path, spec.path, f"{wrong}; give that file, or set {free} to run with this one")


def find_pinned(spec: ArtifactSpec, folders: Iterable[Path]) -> ResolvedArtifact | None:
    """The pinned file in one of `folders` under its name, or where a file of that content once was."""
    if spec.sha256 is None:
        return None
    named = [folder / spec.file for folder in folders if spec.file]
    for path in (*named, *remembered_places(spec.sha256)):
        if path.exists() and sha256_of(path) == spec.sha256:
            return ResolvedArtifact(
                name=spec.name,
                path=path,
                place=str(path.parent),
                reason=f"has the sha256 that the recipe pins, found in {path.parent}",
                file=spec.file or path.name,
                generation=generation_of_file(path),
                config_path=spec.config_path,
            )
    return None


def pin_of(spec: ArtifactSpec) -> str:
    """The pinned file in words."""
    name = spec.file or "the file"
    return f"{name} with sha256 {spec.sha256}"
