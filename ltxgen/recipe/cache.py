"""A run's view of stored outputs: which stages need not run, what is kept of those that do, and how far they are."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ltxgen.artifacts.cache_folder import cache_folder
from ltxgen.recipe.keys import machine_facts, stage_keys
from ltxgen.recipe.plan import Plan
from ltxgen.recipe.state import Packed, pack, unpack
from ltxgen.recipe.store import BadEntry, Store
from ltxgen.runtime.ranks import Ranks
from ltxgen.stage.protocol import Stage

STAGES = "stages"


def stages_folder(folder: str | None = None) -> Path:
    """Where outputs are stored, by default inside ltxgen's cache folder."""
    return Path(folder).expanduser().absolute() if folder else cache_folder() / STAGES


def open_cache(
    plan: Plan, given: Mapping[str, Any], ranks: Ranks, note: Callable[[str], None], own: Path | None = None
) -> StageCache:
    """The stored outputs that this run may use, for a state that starts with `given`; a collective call.

    `own` is a folder of this run's alone: what it needs to go on after an interruption is kept there where the cache is
    not both read and written. None: it is kept nowhere then.
    """
    cache = plan.recipe.cache
    shared = Store(stages_folder(cache.folder), int(cache.max_gib * 2**30))
    alone = None if own is None or cache.mode == "auto" else Store(own)
    reads = [alone, shared if cache.mode in ("auto", "read") else None]
    writes = [alone, shared if cache.mode in ("auto", "write") else None]
    if plan.recipe.output.tensors:
        if ranks.is_main and any(reads):
            note("every stage runs: output.tensors=true wants the intermediate results of all")
        reads = []
    machines = ranks.gather(machine_facts(plan.device))
    digests = {name: pack(value).digest() for name, value in given.items()}  # now: a generator moves on

    def keys() -> dict[str, str]:
        """As files and code are now."""
        return stage_keys(plan, digests, [machine_facts(plan.device), *machines[1:]])

    return StageCache(plan, keys, ranks, note, *([each for each in some if each] for some in (reads, writes)))


class StageCache:
    """What the executor asks. The first rank reads and writes, and the others get from it what it found.

    Stages that write a stream, or files alone, are not stored: they run whenever someone wants what they make.
    """

    def __init__(
        self,
        plan: Plan,
        keys: Callable[[], Mapping[str, str]],
        ranks: Ranks,
        note: Callable[[str], None],
        reads: Sequence[Store],
        writes: Sequence[Store],
    ) -> None:
        self._plan = plan
        self._current_keys = keys
        self._ranks = ranks
        self._note = note
        self._reads = reads if ranks.is_main else ()
        self._writes = writes if ranks.is_main else ()
        self._keeps_steps = bool(writes)
        self.keys: Mapping[str, str] = ranks.from_first(keys() if ranks.is_main else None)

    def reuse(self, stages: Mapping[str, Stage]) -> dict[str, Callable[[], dict[str, Any]]]:
        """The stages that need not run, with what gives the values that others want of them; a collective call.

        What is stored is read and checked here, once: a stage that can't be had makes those before it run.
        """
        found: dict[str, Packed | None] = self._ranks.from_first(self._find(stages) if self._reads else {})
        return {name: partial(self._values, packed) for name, packed in found.items()}

    def _find(self, stages: Mapping[str, Stage]) -> dict[str, Packed | None]:
        """From the last stage to the first; None for a stage that nobody wants anything of."""
        found: dict[str, Packed | None] = {}
        wanted = _results(stages)
        for name, stage in reversed(list(stages.items())):
            if is_stored(stage):
                unwanted = wanted.isdisjoint(stage.writes)
                packed = None if unwanted else self._load(self.keys[name])
                if unwanted or packed is not None:
                    found[name] = packed
                    wanted -= set(stage.writes)
                    continue
            wanted = (wanted - set(stage.writes)) | set(stage.reads)
        return found

    def _values(self, packed: Packed | None) -> dict[str, Any]:
        return {} if packed is None else unpack(packed, self._plan.device, self._plan.dtype)

    def _load(self, key: str) -> Packed | None:
        for store in self._reads:
            try:
                packed = store.load(key)
            except (BadEntry, OSError) as error:
                self._note(f"{store.path(key)}: {error}; computed again")
                continue
            if packed is not None:
                return packed
        return None

    def keep(self, name: str, stage: Stage, written: Mapping[str, Any]) -> None:
        """Store what a stage wrote; how far it was is no longer of use."""
        if self._writes and is_stored(stage):
            self._save(self.keys[name], name, written)
            for store in self._writes:
                store.remove(_steps_key(self.keys[name]))

    def steps(self, name: str) -> StageSteps | None:
        """Where a stage keeps how far it is; None where there is no place for it. The same on all ranks."""
        return StageSteps(self, name) if self._keeps_steps else None

    def load_steps(self, name: str) -> Any:
        packed = self._ranks.from_first(self._load(_steps_key(self.keys[name])))
        return None if packed is None else unpack(packed, self._plan.device, self._plan.dtype)

    def save_steps(self, name: str, value: Any) -> None:
        if self._writes:
            self._save(_steps_key(self.keys[name]), name, value)

    def _save(self, key: str, name: str, value: Any) -> None:
        if self._current_keys()[name] != self.keys[name]:
            self._note(f"what {name} made is not stored: the files that it uses, or ltxgen's own, changed meanwhile")
            return
        try:
            packed = pack(value)
        except TypeError as error:
            self._note(f"what {name} made is not stored: {error}")
            return
        facts = {"stage": name, "recipe": self._plan.recipe.name, "made": time.time()}
        for store in list(self._writes):
            try:
                store.save(key, packed, facts)
            except OSError as error:  # a full disk ends the storing, not the run
                self._note(f"outputs are no longer stored in {store.folder}: {error.strerror or error}")
                self._writes = [each for each in self._writes if each is not store]


@dataclass(frozen=True)
class StageSteps:
    """How far one stage is, beside the outputs: found again only by the very same work."""

    cache: StageCache
    name: str

    def load(self) -> Any:
        return self.cache.load_steps(self.name)

    def save(self, value: Any) -> None:
        self.cache.save_steps(self.name, value)


def is_stored(stage: Stage) -> bool:
    """Whether what a stage makes can be stored: it is there as a whole, and no file."""
    return bool(stage.writes) and not stage.makes_stream


def _results(stages: Mapping[str, Stage]) -> set[str]:
    """What no stage takes: the values that a run ends with."""
    left: set[str] = set()
    for stage in stages.values():
        left = (left - set(stage.reads)) | set(stage.writes)
    return left


def _steps_key(key: str) -> str:
    return hashlib.sha256(f"steps of {key}".encode()).hexdigest()
