"""What a stage is: names it reads and writes, components it needs, checks before anything loads, and one `run`."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from ltxgen.artifacts.artifact import ResolvedArtifact
from ltxgen.config.errors import Problem
from ltxgen.config.recipe import Request
from ltxgen.diffusion.numerics import Numerics
from ltxgen.diffusion.pair import Pair
from ltxgen.parallel.cost import Work
from ltxgen.parallel.plan import ParallelPlan


@dataclass(frozen=True)
class PartRequest:
    """A component that a stage needs: its name, the dtype of its weights and the LoRAs fused into them.

    `loras` is an ordered tuple of (name, strength); two requests for one name share the loaded component.
    """

    name: str
    dtype: torch.dtype
    loras: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Setting:
    """The facts of a run that its stages may know before anything loads.

    `artifacts` holds the files that were found, by artifact name, and `parallel` how the ranks share the work.
    Stages ask for the files, and what they then know of their work decides about the ranks: a plan builds its
    stages anew each time that it knows more. Denoising steps are recorded as CUDA graphs where a pass has up to
    `graphed_tokens` of a rank's own video tokens. `denoised` names the denoise stages before this one, `enhanced`
    the prompt of the state that stands for the request's.
    """

    request: Request
    numerics: Numerics
    device: torch.device
    dtype: torch.dtype
    artifacts: Mapping[str, ResolvedArtifact] = field(default_factory=dict)
    parallel: ParallelPlan | None = None
    graphed_tokens: int = 0
    denoised: tuple[str, ...] = ()
    enhanced: str | None = None

    @property
    def last_denoised(self) -> str:
        """The stage whose latents are decoded unless a recipe names another."""
        return self.denoised[-1] if self.denoised else "base"  # which the wiring then misses


def request_fields(config: Any) -> tuple[str, ...]:
    """The fields of the request that a stage of this config can see: its own `request_fields`, or all but the seed,
    which stages know as the run's noise, and `original_prompt`, of which nothing is made any more. They are part of
    what its output is stored under."""
    unseen = ("seed", "original_prompt")
    every = tuple(field.name for field in dataclasses.fields(Request) if field.name not in unseen)
    return getattr(config, "request_fields", every)


def metadata_artifacts(config: Any) -> tuple[str, ...]:
    """Artifacts whose metadata, rather than weights, a stage of this config reads: also part of what its output is
    stored under."""
    return getattr(config, "metadata_artifacts", ())


class SeenRequest:
    """A request of which only some fields can be read: what a stage can't see can't change its output unnoticed."""

    def __init__(self, request: Request, fields: Sequence[str]) -> None:
        self._seen = {name: getattr(request, name) for name in fields}

    def __getattr__(self, name: str) -> Any:
        if name == "_seen" or name not in self._seen:
            raise AttributeError(f"this stage can't see request.{name}: name it in its config's request_fields")
        return self._seen[name]


def setting_for(config: Any, setting: Setting) -> Setting:
    """`setting` as the stage of this config may see it."""
    return dataclasses.replace(setting, request=cast(Request, SeenRequest(setting.request, request_fields(config))))


class Steps(Protocol):
    """Where a stage keeps how far it is, so that an interrupted run goes on from there and not from its start."""

    def load(self) -> Any:
        """What was saved last for the very same work; None for nothing. The same on all ranks."""

    def save(self, value: Any) -> None:
        """Keep `value`, of tensors, numbers and dataclasses of them, instead of what was saved before."""


class StepProgress(Protocol):
    """Where a stage tells how far it is."""

    def begin(self, num_steps: int, unit: str = ...) -> None: ...
    def advance(self, num_steps: int = ..., note: str = ...) -> None: ...
    def note(self, text: str) -> None: ...


class Watcher(Protocol):
    """Sees latents on their way, and frames when they are decoded (`media.previews.Previews`)."""

    def show(self, stage: str, step: int, latents: torch.Tensor) -> None: ...
    def learn(self, latents: torch.Tensor, frames: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]: ...


class NoWatcher:
    """Where nobody looks: in tests, in benchmarks, on ranks but the first."""

    def show(self, stage: str, step: int, latents: torch.Tensor) -> None:
        pass

    def learn(self, latents: torch.Tensor, frames: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
        return frames


NO_WATCHER = NoWatcher()


@dataclass(frozen=True)
class Step:
    """A finished denoising step, counted from 0: the latents (1,C,F,H,W) and (1,C,T,M) at its end, and the clean ones
    that the model expected in it. `sigma` is the noise level that it started from, `passes` what the transformer ran
    for, once or several times."""

    stage: str
    number: int
    num_steps: int
    latents: Pair[Tensor]
    denoised: Pair[Tensor]
    sigma: float
    passes: tuple[str, ...]


class Watch(Protocol):
    """Follows a run from inside: told each denoising step, and what each stage has written."""

    def stepped(self, step: Step) -> None: ...

    def wrote(self, name: str, value: Any) -> Any:
        """`value`, which a stage has written under `name`, or what stands for it from then on."""


@dataclass(frozen=True)
class RunContext:
    """What the executor hands to a running stage.

    `folder` is where files are written (moved to the output folder as a whole at the end); `record(name, tensor)` keeps
    an intermediate result if the run asked for them (`output.tensors=true`; `records` says so). `report(name, fact)`
    adds what the stage measured to its entry in the manifest; what is empty is left out. `steps` is None where nothing
    can be kept. `about()` is what a file may say of the run that made it, as far as it went. `stepped`, where somebody
    watches, is told each denoising step.
    """

    folder: Path
    progress: StepProgress
    record: Callable[[str, torch.Tensor], None]
    report: Callable[[str, Any], None]
    records: bool = False
    steps: Steps | None = None
    watcher: Watcher = NO_WATCHER
    about: Callable[[], str] = str
    stepped: Callable[[Step], None] | None = None


class Stream(Iterator[Any]):
    """A value that is made piece by piece while its reader takes it; a stage may write one instead of a whole."""

    def __init__(self, pieces: Iterable[Any]) -> None:
        self.made_by: Any = None  # the executor's record of the stage that wrote it
        self._pieces = iter(pieces)

    def __next__(self) -> Any:
        return next(self._pieces)


class Stage(Protocol):
    """One named stage of a recipe, built from its YAML for one run; a subclass says where it is more than the least.

    `shapes` maps a name in the run's state to what is known of the value before running (a latent grid, a context);
    `infer` adds what this stage will write and returns the problems it sees.
    """

    reads: Sequence[str]
    writes: Sequence[str]
    parts: Sequence[PartRequest] = ()
    size_multiple: int = 1  # what the request's height and width must be multiples of
    makes_stream: bool = False  # what it writes is a Stream

    @property
    def num_passes(self) -> int:
        """Of the transformer in a step, at most; 0 for a stage without steps."""
        return 0

    @property
    def work(self) -> Work | None:
        """What it asks of the transformer; asked only for a request whose sizes fit."""
        return None

    def infer(self, shapes: dict[str, Any]) -> list[Problem]:
        return []

    def activation_bytes(self, free_bytes: int) -> int:
        """The most that running takes on the device beside weights, once `infer` was called; a stage that fits itself
        to memory has `free_bytes`."""
        return 0

    def describe(self) -> dict[str, Any]:
        """What it does, for the plan and the manifest."""
        return {}

    @abstractmethod
    def run(self, state: Mapping[str, Any], parts: Mapping[str, Any], context: RunContext) -> dict[str, Any]:
        """The values of `writes`, from those of `reads` and the parts asked for."""
