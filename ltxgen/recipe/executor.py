"""StageExecutor: runs named stages in order and owns the life of every component. It knows nothing of any model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import torch

from ltxgen.config.errors import Problem
from ltxgen.recipe.ahead import Loading, LoadingAhead
from ltxgen.runtime.clock import StepWatch
from ltxgen.stage.protocol import (
    NO_WATCHER,
    PartRequest,
    RunContext,
    Stage,
    StepProgress,
    Steps,
    Stream,
    Watch,
    Watcher,
)


class PartSource(Protocol):
    """Where components come from.

    `build` loads one; so do, in two steps, `start`, whose result loads in any thread, and `finish`. `start` gives None
    for one that had better be left to `build`. `adapt` fits a loaded one to a request (its LoRAs), `later` being the
    requests still to come for it; `set_aside` is given those that wait for a later stage, which calls `adapt` first;
    `released` is told the names that were freed.
    """

    def build(self, request: PartRequest) -> Any: ...
    def start(self, request: PartRequest) -> Loading | None: ...
    def finish(self, request: PartRequest, loaded: Any) -> Any: ...
    def adapt(self, part: Any, request: PartRequest, later: Sequence[PartRequest]) -> None: ...
    def set_aside(self, parts: Mapping[str, Any]) -> None: ...
    def released(self, names: Sequence[str]) -> None: ...


class Meter(Protocol):
    """Measures peak memory in bytes while it is entered."""

    @property
    def peak_bytes(self) -> int: ...

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Display(Protocol):
    """A view of the run: one entry a stage."""

    def stage(self, name: str, memory: Any) -> AbstractContextManager[StepProgress]: ...
    def reused(self, name: str, why: str) -> None: ...


class Outputs(Protocol):
    """What stages made in earlier runs, and a place for what they make in this one.

    `reuse` is asked once, before anything loads: the stages that need not run, each with what gives the values that
    others want of it. `keep` is given what a stage wrote; `steps` is where it keeps how far it is meanwhile.
    """

    @property
    def keys(self) -> Mapping[str, str]: ...
    def reuse(self, stages: Mapping[str, Stage]) -> Mapping[str, Callable[[], Mapping[str, Any]]]: ...
    def keep(self, name: str, stage: Stage, written: Mapping[str, Any]) -> None: ...
    def steps(self, name: str) -> Steps | None: ...


@dataclass
class StageRecord:
    """What a stage took: its own seconds (a stream's pieces count where they are made), loading apart, peak memory.

    `load_seconds` is what it waited for; `loaded_ahead_seconds` is what its components took beside earlier stages.
    `details` is what it says of itself before it runs and what it reports from then on. `source` says whether it ran,
    `key` what its output is stored under.
    """

    source: Literal["run", "cache"] = "run"
    key: str | None = None
    seconds: float = 0.0
    load_seconds: float = 0.0
    loaded_ahead_seconds: float = 0.0
    peak_bytes: int = 0
    details: dict[str, Any] = field(default_factory=dict)


def wiring_problems(stages: Mapping[str, Stage], given: Sequence[str]) -> list[Problem]:
    """Names that a stage reads although neither an earlier stage nor the caller (`given`) writes them."""
    known = set(given)
    problems = []
    for name, stage in stages.items():
        for wanted in stage.reads:
            if wanted not in known:
                fix = f"; have it read one of these, or leave it out with stages.{name}=null" if known else ""
                written = ", ".join(sorted(known)) or "nothing"
                message = f"no earlier stage writes what it reads; written so far: {written}{fix}"
                problems.append(Problem(f"stages.{name}", wanted, message))
        known.update(stage.writes)
    return problems


class StageExecutor:
    """Runs stages over a state of named values.

    A component is built on first use and freed after the last stage that requests it (`keep="last_use"`) or at the end
    (`keep="run"`). A value is dropped after its last reader; one that is a `Stream` holds the components of the stage
    that makes it until then.

    `ahead` names, for a stage, components of later ones that are loaded in a thread while it runs; what goes wrong with
    them is the error of the stage that wants them.
    """

    def __init__(
        self,
        source: PartSource,
        display: Display,
        meter: Callable[[], Meter],
        keep: str = "last_use",
        ahead: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.records: dict[str, StageRecord] = {}
        self.first_step_at: float | None = None  # on time.perf_counter's clock
        self._ahead = ahead or {}
        self._source = source
        self._display = display
        self._new_meter = meter
        self._keep = keep
        self._built: dict[str, Any] = {}
        self._held: dict[str, set[str]] = {}  # a stream's name in the state -> the components it needs

    def run(
        self,
        stages: Mapping[str, Stage],
        state: dict[str, Any],
        folder: Path,
        record: Callable[[str, torch.Tensor], None] | None = None,
        outputs: Outputs | None = None,
        watcher: Watcher = NO_WATCHER,
        about: Callable[[], str] = str,
        watch: Watch | None = None,
    ) -> dict[str, Any]:
        """Run `stages` in order on `state`; returns the values that no stage has taken.

        Stages write files into `folder`, and hand intermediate results to `record` if it is given; `watcher` and
        `about` are theirs as they are. Those whose values are among `outputs` don't run, and what they alone need is
        not built. `watch` follows the run.
        """
        self.first_step_at = None
        self._loading = LoadingAhead(self._source)
        keys = {} if outputs is None else outputs.keys
        reused = {} if outputs is None else outputs.reuse(stages)
        self.records = {name: StageRecord("cache" if name in reused else "run", keys.get(name)) for name in stages}
        ordered = list(stages.items())
        try:
            for position, (name, stage) in enumerate(ordered):
                rest = [later for other, later in ordered[position + 1 :] if other not in reused]
                if name in reused:
                    self._reuse(name, stage, state, reused[name], watch)
                else:
                    steps = None if outputs is None else outputs.steps(name)
                    make_context = RunContextMaker(folder, record, steps, watcher, about, watch)
                    self._run_stage(name, stage, rest, state, make_context)
                    if outputs is not None:
                        outputs.keep(name, stage, {key: state[key] for key in stage.writes})
                self._drop_values(stage, rest, state)
                self._free(keeping=self._needed(rest))
                self._set_aside(rest)
        finally:
            self._held.clear()
            self._built.update(dict.fromkeys(self._loading.stop()))
            self._free(keeping=set())
        return state

    def _reuse(
        self,
        name: str,
        stage: Stage,
        state: dict[str, Any],
        values: Callable[[], Mapping[str, Any]],
        watch: Watch | None,
    ) -> None:
        entry = self.records[name]
        started = time.perf_counter()
        state.update({key: watch.wrote(key, value) if watch else value for key, value in values().items()})
        entry.details = dict(stage.describe())
        entry.seconds = time.perf_counter() - started
        self._display.reused(name, "from the cache")

    def _run_stage(
        self, name: str, stage: Stage, rest: Sequence[Stage], state: dict[str, Any], make_context: RunContextMaker
    ) -> None:
        entry = self.records[name]
        with self._new_meter() as memory, self._display.stage(name, memory) as progress:
            started = time.perf_counter()
            self._load_ahead(self._ahead.get(name, ()), rest)
            parts = self._parts(stage, rest, entry)
            loaded = time.perf_counter()
            steps = StepWatch(progress)
            inputs = {key: self._counted(state[key], entry, memory) for key in stage.reads}
            entry.details = dict(stage.describe())
            written = stage.run(inputs, parts, make_context(steps, entry))
            if torch.cuda.is_available():
                torch.cuda.current_stream().synchronize()  # what the stage queued is its own time, what loads is not
            entry.load_seconds = loaded - started
            entry.seconds += time.perf_counter() - loaded
            if self.first_step_at is None and steps.first is not None:
                self.first_step_at = steps.first.at()
        entry.peak_bytes = max(entry.peak_bytes, memory.peak_bytes)
        assert set(written) == set(stage.writes), f"stage {name} wrote {sorted(written)}, not {sorted(stage.writes)}"
        for key, value in written.items():
            if isinstance(value, Stream):
                value.made_by = entry
                self._held[key] = {request.name for request in stage.parts}
        watch = make_context.watch
        state.update({key: watch.wrote(key, value) if watch else value for key, value in written.items()})

    def _load_ahead(self, names: Sequence[str], rest: Sequence[Stage]) -> None:
        requests = {request.name: request for stage in reversed(rest) for request in stage.parts}
        for name in names:
            if name in requests:  # else only stages wanted it whose outputs were stored
                self._loading.start(requests[name])

    def _parts(self, stage: Stage, rest: Sequence[Stage], entry: StageRecord) -> dict[str, Any]:
        parts = {}
        for request in stage.parts:
            part = self._built.get(request.name)
            if part is None:
                part = self._built[request.name] = self._built_now_or_ahead(request, entry)
            later = [other for following in rest for other in following.parts if other.name == request.name]
            self._source.adapt(part, request, later)
            parts[request.name] = part
        return parts

    def _built_now_or_ahead(self, request: PartRequest, entry: StageRecord) -> Any:
        loaded = self._loading.take(request.name)
        if loaded is None:
            return self._source.build(request)
        entry.loaded_ahead_seconds += loaded.seconds
        return self._source.finish(request, loaded.part)

    def _counted(self, value: Any, reader: StageRecord, memory: Meter) -> Any:
        """A stream is made while its reader runs: count the time and memory of its pieces where they belong."""
        return Stream(self._pieces(value, reader, memory)) if isinstance(value, Stream) else value

    def _pieces(self, stream: Stream, reader: StageRecord, memory: Meter) -> Iterator[Any]:
        maker = stream.made_by
        while True:
            started = time.perf_counter()
            piece = next(stream, None)
            seconds = time.perf_counter() - started
            maker.seconds += seconds
            reader.seconds -= seconds
            maker.peak_bytes = max(maker.peak_bytes, memory.peak_bytes)
            if piece is None:
                return
            yield piece

    def _drop_values(self, done: Stage, rest: Sequence[Stage], state: dict[str, Any]) -> None:
        wanted = {key for stage in rest for key in stage.reads}
        for key in set(done.reads) - wanted:
            state.pop(key, None)
            self._held.pop(key, None)

    def _needed(self, rest: Sequence[Stage]) -> set[str]:
        if self._keep == "run":
            return set(self._built)
        requested = {request.name for stage in rest for request in stage.parts}
        return requested.union(*self._held.values())

    def _set_aside(self, rest: Sequence[Stage]) -> None:
        """All that the next stage has no use for."""
        used = {request.name for stage in rest[:1] for request in stage.parts}.union(*self._held.values())
        if waiting := {name: part for name, part in self._built.items() if name not in used}:
            self._source.set_aside(waiting)

    def _free(self, keeping: set[str]) -> None:
        freed = [name for name in self._built if name not in keeping]
        for name in freed:
            del self._built[name]
        if freed:
            self._source.released(freed)


@dataclass(frozen=True)
class RunContextMaker:
    """What every stage of a run is told, less its own progress and record."""

    folder: Path
    record: Callable[[str, torch.Tensor], None] | None
    steps: Steps | None
    watcher: Watcher
    about: Callable[[], str]
    watch: Watch | None

    def __call__(self, progress: StepProgress, entry: StageRecord) -> RunContext:
        def report(name: str, fact: Any) -> None:
            if fact:
                entry.details[name] = fact

        record = self.record or (lambda name, tensor: None)
        stepped = self.watch.stepped if self.watch else None
        return RunContext(
            self.folder,
            progress,
            record,
            report,
            self.record is not None,
            self.steps,
            self.watcher,
            self.about,
            stepped,
        )
