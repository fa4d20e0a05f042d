"""What a stage is: names it reads and writes, components it needs, checks before anything loads, and one `run`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from ltxgen.artifacts.artifact import ResolvedArtifact
from ltxgen.config.errors import Problem
from ltxgen.config.recipe import Request
from ltxgen.diffusion.numerics import Numerics
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

    `artifacts` holds the files that were found, by artifact name, and `parallel` how the ranks share the work. Both are
    there once the files are known, which takes stages to ask for them: a plan builds its stages twice. Denoising steps
    of up to `graphed_tokens` video tokens are recorded as CUDA graphs. `denoised` names the denoise stages before this
    one.
    """

    request: Request
    numerics: Numerics
    device: torch.device
    dtype: torch.dtype
    artifacts: Mapping[str, ResolvedArtifact] = field(default_factory=dict)
    parallel: ParallelPlan | None = None
    graphed_tokens: int = 0
    denoised: tuple[str, ...] = ()

    @property
    def last_denoised(self) -> str:
        """The stage whose latents are decoded unless a recipe names another."""
        return self.denoised[-1] if self.denoised else "base"  # which the wiring then misses


class StepProgress(Protocol):
    """Where a stage tells how far it is."""

    def begin(self, num_steps: int, unit: str = ...) -> None: ...
    def advance(self, num_steps: int = ..., note: str = ...) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass(frozen=True)
class RunContext:
    """What the executor hands to a running stage.

    `folder` is where files are written (moved to the output folder as a whole at the end); `record(name, tensor)` keeps
    an intermediate result if the run asked for them (`output.tensors=true`; `records` says so). `report(name, fact)`
    adds what the stage measured to its entry in the manifest; what is empty is left out.
    """

    folder: Path
    progress: StepProgress
    record: Callable[[str, torch.Tensor], None]
    report: Callable[[str, Any], None]
    records: bool = False


class Stream(Iterator[Any]):
    """A value that is made piece by piece while its reader takes it; a stage may write one instead of a whole."""

    def __init__(self, pieces: Iterable[Any]) -> None:
        self.made_by: Any = None  # the executor's record of the stage that wrote it
        self._pieces = iter(pieces)

    def __next__(self) -> Any:
        return next(self._pieces)


class Stage(Protocol):
    """One named stage of a recipe, built from its YAML for one run.

    `shapes` maps a name in the run's state to what is known of the value before running (a latent grid, a context);
    `infer` adds what this stage will write and returns the problems it sees.
    """

    reads: Sequence[str]
    writes: Sequence[str]
    parts: Sequence[PartRequest]
    size_multiple: int  # what the request's height and width must be multiples of
    num_passes: int  # of the transformer in a step, at most; 0 for a stage without steps
    makes_stream: bool  # what it writes is a Stream

    @property
    def work(self) -> Work | None: ...  # what it asks of the transformer; only for a request whose sizes fit

    def infer(self, shapes: dict[str, Any]) -> list[Problem]: ...

    def activation_bytes(self, free_bytes: int) -> int:
        """The most that running takes on the device beside weights, once `infer` was called; a stage that fits itself
        to memory has `free_bytes`."""

    def describe(self) -> dict[str, Any]: ...
    def run(self, state: Mapping[str, Any], parts: Mapping[str, Any], context: RunContext) -> dict[str, Any]: ...
