"""What a wanted file is (`ArtifactSpec`), where it might come from (`Candidate`), and what was found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from ltxgen.artifacts.hashing import sha256_of
from ltxgen.artifacts.safetensors_file import BadFile, read_header

Source = Literal["files", "embedded", "synthetic"]


@dataclass(frozen=True)
class Candidate:
    """One published file, or a whole model folder when `file` is empty.

    `size_bytes` and `sha256` are what was published, where that is known; `pattern`s choose the files of a folder.
    """

    repo: str
    file: str = ""
    revision: str | None = None
    size_bytes: int | None = None
    sha256: str | None = None
    patterns: tuple[str, ...] = ()

    @property
    def is_folder(self) -> bool:
        return not self.file

    @property
    def label(self) -> str:
        """`repo/file`, with `@revision` when one is asked for."""
        name = f"{self.repo}/{self.file}" if self.file else self.repo
        return f"{name}@{self.revision}" if self.revision else name


@dataclass(frozen=True)
class ArtifactSpec:
    """A wanted artifact.

    name: `checkpoint`, `distilled_lora`, an upscaler (`components.UPSCALERS`), `text_encoder` or a LoRA's own name.
    candidates: files that will do, newest first. path: the user's own file or folder, which then is the only choice.
    source: `files` looks for candidates, `embedded` is the model this project makes itself, `synthetic` has no file.
    generation: the model generation that is wanted; None accepts any. others: files of other generations that are
    looked for only to explain why they can't be used. sha256: the only content that will do, of a file called `file`.
    """

    name: str
    candidates: tuple[Candidate, ...] = ()
    path: str | None = None
    source: Source = "files"
    generation: str | None = "LTX-2.3"
    licence_url: str | None = None
    gated: bool = False
    others: tuple[Candidate, ...] = ()
    architecture: str = "ltx23_22b"  # of the synthetic source
    seed: int = 0  # of the synthetic source
    file: str | None = None
    sha256: str | None = None

    @property
    def wants_distilled(self) -> bool:
        """Whether this is a checkpoint whose preferred file is a distilled one."""
        return self.name == "checkpoint" and bool(self.candidates) and is_distilled(self.candidates[0].file)

    @property
    def config_path(self) -> str:
        """Where the user can set the file: `artifacts.<name>.path`."""
        return f"artifacts.{self.name}.path"


@dataclass(frozen=True)
class Attempt:
    """A place that was looked into and why it did not give the artifact."""

    candidate: Candidate | None
    place: str
    why_not: str

    def __str__(self) -> str:
        return f"{self.candidate.label if self.candidate else 'path'} in {self.place}: {self.why_not}"


@dataclass(frozen=True)
class ResolvedArtifact:
    """An artifact that was found. `path` is absolute; it is None for the synthetic source, which has no file.

    reason says in one sentence why this file was taken; tried lists what was passed over before it.
    """

    name: str
    path: Path | None
    place: str
    reason: str
    repo: str | None = None
    revision: str | None = None
    file: str | None = None
    generation: str | None = None
    tried: tuple[Attempt, ...] = ()
    synthetic_config: Mapping[str, Any] | None = None
    seed: int = 0
    config_path: str = field(default="")
    shapes: dict[Any, dict[str, tuple[int, ...]]] = field(init=False, default_factory=dict, repr=False, compare=False)
    """Of components that were built from its config: `load.component_shapes` remembers them, a plan asks often."""

    @property
    def is_synthetic(self) -> bool:
        return self.path is None

    @property
    def is_folder(self) -> bool:
        return self.path is not None and self.path.is_dir()

    @property
    def size(self) -> int:
        """Bytes on disk (0 for the synthetic source)."""
        if self.path is None:
            return 0
        if self.path.is_dir():
            return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())
        return self.path.stat().st_size

    @property
    def state(self) -> tuple[object, ...]:
        """What changes with the content, as far as that can be told without reading it. Hashable."""
        if self.path is None:
            return self.name, self.seed, repr(self.synthetic_config)
        files = sorted(self.path.rglob("*")) if self.is_folder else [self.path]
        states = ((str(file), file.stat()) for file in files if file.exists())
        return tuple((name, state.st_size, state.st_mtime_ns) for name, state in states)

    @property
    def sha256(self) -> str | None:
        """Hex digest of the file, or over the files of a folder; None for the synthetic source.

        Computed at the first call and remembered on disk by (path, size, modification time).
        """
        return None if self.path is None else sha256_of(self.path)

    @property
    def is_distilled(self) -> bool:
        """Whether this is a distilled checkpoint (to be run without guidance), told by its name."""
        return is_distilled(self.file or (self.path.name if self.path else ""))

    @cached_property
    def metadata(self) -> Mapping[str, str]:
        """Text metadata of a safetensors file (empty for a folder and the synthetic source). Raises BadFile."""
        if self.path is None or self.path.is_dir():
            return {}
        return read_header(self.path).metadata

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The architecture: a file's metadata `config`, a folder's `config.json`. Raises BadFile if there is none."""
        if self.synthetic_config is not None:
            return self.synthetic_config
        assert self.path is not None, "an artifact has a path or a synthetic config"
        if self.path.is_dir():
            return _json_object(_read_text(self.path / "config.json"), "its config.json")
        if "config" not in self.metadata:
            raise BadFile("has no `config` in its safetensors metadata, so its architecture is unknown")
        return _json_object(self.metadata["config"], "its metadata `config`")


@dataclass(frozen=True)
class Files:
    """Artifacts by name that compare by the state of their files: what was found out of them holds for equal ones."""

    state: tuple[object, ...]
    artifacts: Mapping[str, ResolvedArtifact] = field(compare=False)

    @classmethod
    def of(cls, artifacts: Mapping[str, ResolvedArtifact]) -> Files:
        return cls(tuple((name, each.config_path, each.state) for name, each in artifacts.items()), artifacts)


def is_distilled(name: str) -> bool:
    """Whether a file of this name is a distilled checkpoint: nothing in such a file says so."""
    return "distilled" in name.lower() and "lora" not in name.lower()


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadFile(f"has no readable {path.name}") from error


def _json_object(text: str, what: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadFile(f"can't be used: {what} is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise BadFile(f"can't be used: {what} is no JSON object")
    return value
