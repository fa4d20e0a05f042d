"""Several runs in one process: components stay loaded between those that want the same."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from ltxgen.artifacts.components import TRANSFORMERS, artifact_of
from ltxgen.models.blocks import BLOCKS
from ltxgen.recipe.ahead import Loading
from ltxgen.recipe.forecast import Peak
from ltxgen.recipe.parts import ArtifactParts
from ltxgen.recipe.plan import Plan
from ltxgen.recipe.run import parts_of
from ltxgen.stage.protocol import PartRequest

PartKey = tuple[object, ...]
"""What makes two loaded components the same, but for the LoRAs, which are exchanged in the live weights."""


def part_key(plan: Plan, name: str) -> PartKey | None:
    """The key of the component `name` in a plan that can run; None where no stage asks for it."""
    request = next((each for stage in plan.stages.values() for each in stage.parts if each.name == name), None)
    if request is None:
        return None
    key: PartKey = (name, plan.artifacts[artifact_of(name)].state, request.dtype, plan.device)
    if name in TRANSFORMERS:
        key += (plan.options, plan.compiles, plan.fused)
    if name in BLOCKS:
        forecast = plan.memory.forecast if plan.memory else None
        streamed = forecast is not None and forecast.num_kept and (forecast.policy, forecast.num_kept.get(name))
        key += (_is_sharded(plan), streamed)
    return key


@dataclass
class Held:
    """A loaded component. `owner` built it and fits it to requests; `rest` is what it takes while it waits for a coming
    run, None while that is not settled."""

    part: Any
    key: PartKey | None
    owner: ArtifactParts
    rest: Peak | None = None


class Session(AbstractContextManager["Session"]):
    """Keeps the components of a run for those that come after it.

    A component stays, on the device or else on the host, where a coming run wants the same one and it fits beside all
    runs until then without changing what these do; else it is freed after its last use, and loaded again. `loads`
    counts how often each component was loaded.
    """

    def __init__(self) -> None:
        self.loads: collections.Counter[str] = collections.Counter()
        self._held: dict[str, Held] = {}

    def parts(self, plan: Plan, coming: Sequence[Plan], note: Callable[[str], None]) -> SessionParts:
        """The components of a run, before others that come after it. `note` is told what loading does."""
        for name, held in list(self._held.items()):
            keys = [key for each in (plan, *coming) if (key := part_key(each, name)) is not None]
            if keys[:1] != [held.key]:
                self.drop([name])
        for name in sorted(self._held, key=lambda each: part_key(plan, each) is not None):
            if not self._fits(plan, {}):
                self.drop([name])
        for held in self._held.values():
            held.owner.serve(plan.artifacts, plan.swaps)
        return SessionParts(self, self._held, plan, coming, parts_of(plan, note))

    def close(self) -> None:
        """Free everything, as also after a run that failed: nothing is known of what it left."""
        self.drop(list(self._held))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def drop(self, names: Sequence[str]) -> None:
        """Free these components."""
        owners: dict[ArtifactParts, list[str]] = collections.defaultdict(list)
        for name in names:
            owners[self._held.pop(name).owner].append(name)
        for owner, owned in owners.items():
            owner.released(owned)

    def keep(self, name: str, plan: Plan, coming: Sequence[Plan]) -> bool:
        """Let a component rest that `plan`, which runs, has no more use for; False: it is wanted nowhere, or doesn't
        fit."""
        held = self._held[name]
        held.rest = None
        next_use = next((number for number, later in enumerate(coming) if part_key(later, name) == held.key), None)
        if next_use is None or plan.memory is None:
            return False
        runs = [plan, *coming[: next_use + 1]]
        here = plan.memory.at_rest(name)
        on_host = Peak(0, here.device + here.host)
        movable = plan.device.type == "cuda" and not _is_sharded(plan)
        for rest in (here, on_host)[plan.swaps and movable :] if movable else (here,):
            if all(self._fits(run, {name: rest}) for run in runs):
                held.rest = rest
                settle = held.owner.set_aside if rest is here else held.owner.wait_on_host
                settle({name: held.part})
                return True
        return False

    def has_room_ahead(self, plan: Plan) -> bool:
        """Whether `plan`, which runs, may load ahead beside what rests now."""
        return self._fits(plan, {}, ahead=True)

    def _fits(self, plan: Plan, more: Mapping[str, Peak], *, ahead: bool = False) -> bool:
        resting = {name: held.rest for name, held in self._held.items() if held.rest is not None}
        return plan.memory is not None and plan.memory.leaves_room_for({**resting, **more}, ahead=ahead)


def _is_sharded(plan: Plan) -> bool:
    return plan.parallel is not None and plan.parallel.sharded_weights


@dataclass(frozen=True, eq=False)
class SessionParts:
    """A run's view of a session: the executor's `PartSource`. What isn't there yet, `fresh` builds."""

    session: Session
    held: dict[str, Held]
    plan: Plan
    coming: Sequence[Plan]
    fresh: ArtifactParts

    def build(self, request: PartRequest) -> Any:
        if request.name not in self.held:
            self._hold(request.name, self.fresh.build(request))
        return self.held[request.name].part

    def start(self, request: PartRequest) -> Loading | None:
        if request.name in self.held or not self.session.has_room_ahead(self.plan):
            return None
        return self.fresh.start(request)

    def finish(self, request: PartRequest, loaded: Any) -> Any:
        part = self.fresh.finish(request, loaded)
        self._hold(request.name, part)
        return part

    def _hold(self, name: str, part: Any) -> None:
        self.held[name] = Held(part, part_key(self.plan, name), self.fresh)
        self.session.loads[name] += 1

    def adapt(self, part: Any, request: PartRequest, later: Sequence[PartRequest]) -> None:
        self.held[request.name].owner.adapt(part, request, later)

    def set_aside(self, parts: Mapping[str, Any]) -> None:
        by_owner = sorted(parts, key=lambda name: id(self.held[name].owner))
        for _, names in itertools.groupby(by_owner, key=lambda name: id(self.held[name].owner)):
            waiting = {name: parts[name] for name in names}
            self.held[next(iter(waiting))].owner.set_aside(waiting)

    def released(self, names: Sequence[str]) -> None:
        held = [name for name in names if name in self.held]
        if len(held) < len(names):  # what began to be loaded ahead, in a run that failed
            self.fresh.released([name for name in names if name not in self.held])
        self.session.drop([name for name in held if not self.session.keep(name, self.plan, self.coming)])
