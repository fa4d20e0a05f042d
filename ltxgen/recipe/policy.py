"""The memory policy that a run takes: the fastest that fits, or the one that is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ltxgen.config.errors import Problem
from ltxgen.config.recipe import Memory
from ltxgen.recipe.forecast import Forecast, Forecaster, Peak, Policy, Room
from ltxgen.runtime.memory import format_bytes

# From the fastest to the slowest, for one run; `resident` keeps what a run no longer needs and gains nothing by it.
AUTO: tuple[Policy, ...] = ("last_use", "swap", "stream", "stream from disk")
POLICIES: tuple[Policy, ...] = ("resident", *AUTO)


@dataclass(frozen=True)
class MemoryPlan:
    """The policy of a run, its forecast in this `room`, and why: the lines of `ltxgen plan`."""

    forecast: Forecast
    lines: Sequence[str]
    forecaster: Forecaster
    room: Room

    def leaves_room_for(self, resting: Mapping[str, Peak], *, ahead: bool = False) -> bool:
        """Whether these components may stay while the run doesn't use them: it fits, and none of its stages makes do
        with less, which could change results. `ahead`: also if it loads components ahead."""
        forecaster = self.forecaster.loading(self.forecast.ahead) if ahead else self.forecaster
        return forecaster.leaves_room(self.forecast, self.room, resting)

    def at_rest(self, component: str) -> Peak:
        """What a component takes while nothing uses it."""
        return self.forecaster.at_rest(component, self.forecast)


def choose_policy(
    memory: Memory, forecaster: Forecaster, room: Room, sharded: bool = False, *, limited: bool
) -> tuple[MemoryPlan, list[Problem]]:
    """The policy for a run in `room`, and what is wrong with it.

    Where nothing is limited, for lack of a GPU, `auto` is `last_use`, `stream` keeps no block on the device unless told
    to, and nothing is refused. Where weights are sharded they neither move nor stream.
    """
    known = [policy for policy in POLICIES if not sharded or policy in ("resident", "last_use")]
    num_kept = memory.blocks_on_device if limited or memory.blocks_on_device else 0
    forecasts = {policy: forecaster.forecast(policy, room, num_kept) for policy in known}
    limits = room if limited else Room(room.host, room.host)  # without a GPU weights are in the host's memory
    candidates = [policy for policy in _candidates(memory) if policy in known]
    if not candidates:
        message = "needs whole weights, and these are sharded over ranks (parallel.weights); take auto or last_use"
        return MemoryPlan(forecasts["last_use"], [], forecaster, limits), [
            Problem("memory.policy", memory.policy, message)
        ]
    fitting = [policy for policy in candidates if not limited or forecasts[policy].fits(room)]
    chosen = forecasts[fitting[0] if fitting else candidates[-1]]
    if memory.load_ahead:  # without a GPU all weights are in the host's memory
        chosen = forecaster.with_ahead(chosen, room if limited else Room(room.host, room.host))
    others = [forecaster.forecast(policy, room, num_kept=0) for policy in known if policy != chosen.policy]
    problems = [] if fitting else [_refused(memory, chosen, forecasts, room)]
    return MemoryPlan(chosen, _lines(memory, chosen, others, room), forecaster, limits), problems


def _candidates(memory: Memory) -> tuple[Policy, ...]:
    streams: dict[str, tuple[Policy, ...]] = {
        "auto": ("stream", "stream from disk"),
        "host": ("stream",),
        "disk": ("stream from disk",),
    }
    match memory.policy:
        case "auto":
            return ("last_use", "swap", *streams[memory.stream_from])
        case "stream":
            return streams[memory.stream_from]
        case policy:
            return (policy,)


def _lines(memory: Memory, chosen: Forecast, others: Sequence[Forecast], room: Room) -> list[str]:
    why = " (auto)" if memory.policy == "auto" else ""
    kept = ", ".join(f"{count} blocks of the {name}" for name, count in chosen.num_kept.items())
    stays = f"; {kept} stay on the device" if kept else ""
    peaks = ", ".join(f"{name} {peak}" for name, peak in chosen.stages.items())
    ahead = ", ".join(f"{' and '.join(names)} during {stage}" for stage, names in chosen.ahead.items())
    return [
        f"{chosen}{why}, at most in {chosen.largest}, of {format_bytes(room.device)} that can be had{stays}",
        f"peak of each stage: {peaks}",
        f"loaded ahead: {ahead or 'nothing'}",
        f"others at least: {', '.join(map(str, others))}",
    ]


def _refused(memory: Memory, least: Forecast, forecasts: Mapping[Policy, Forecast], room: Room) -> Problem:
    parts = []
    if least.device > room.usable.device:
        parts.append(
            f"{least.largest} takes {format_bytes(least.device)} of the GPU, {_over(least.device, room.usable.device)} "
            f"can be used"
        )
    if least.host > room.usable.host:
        parts.append(
            f"{format_bytes(least.host)} of the host's memory, {_over(least.host, room.usable.host)} can be used"
        )
    fitting = [policy for policy in AUTO if policy in forecasts and forecasts[policy].fits(room)]
    if fitting:
        way = "memory=stream memory.stream_from=disk" if fitting[0] == "stream from disk" else f"memory={fitting[0]}"
        advice = f"{forecasts[fitting[0]]} fits: {way}"
    else:
        advice = (
            "no policy fits: ask for a smaller or shorter video, or shard the weights over more GPUs "
            "(parallel.num_processes)"
        )
    return Problem("memory.policy", memory.policy, f"{'; '.join(parts)}; {advice}")


def _over(wanted: int, usable: int) -> str:
    return f"{format_bytes(wanted - usable)} more than the {format_bytes(usable)} that"
