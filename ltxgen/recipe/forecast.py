"""Peak memory of each stage under each memory policy, predicted before anything loads."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ltxgen.memory.stream import NUM_SLOTS
from ltxgen.runtime.memory import format_bytes

Policy = Literal["resident", "last_use", "swap", "stream", "stream from disk"]

# What is neither weights nor a stage's own activations: contexts, latents, RoPE tables, workspaces of kernels.
FIXED_BYTES = 2**27
# Of free memory: the rest is the allocator's gaps, and on the host what reading takes.
USABLE = 0.92


@dataclass(frozen=True)
class ComponentSize:
    """Bytes of a component's weights: of each of its equal blocks, where it has them, and of all else."""

    rest: int
    blocks: tuple[int, ...] = ()

    @property
    def whole(self) -> int:
        return self.rest + sum(self.blocks)

    def on_device(self, num_kept: int, *, used: bool = True) -> int:
        """With so many blocks on the device, and while it is used also the buffers through which the others come."""
        num_streamed = max(0, len(self.blocks) - num_kept)
        num_slots = min(NUM_SLOTS, num_streamed) if used else 0
        return self.whole - self.streamed(num_kept) + num_slots * max(self.blocks, default=0)

    def streamed(self, num_kept: int) -> int:
        """What is on the host, or on disk, then; all blocks are taken to be equal."""
        num_streamed = max(0, len(self.blocks) - num_kept)
        return sum(self.blocks) * num_streamed // max(1, len(self.blocks))


@dataclass(frozen=True)
class StageNeed:
    """A stage as far as memory goes: what it reads, writes and uses, and its activations when so much is free.

    `ahead` are components of later stages that are loaded while it runs.
    """

    reads: Sequence[str]
    writes: Sequence[str]
    components: Sequence[str]
    activations: Callable[[int], int]
    makes_stream: bool = False
    ahead: Sequence[str] = ()

    @property
    def loads(self) -> Sequence[str]:
        return [*self.components, *self.ahead]


@dataclass(frozen=True)
class Room:
    """Bytes that can be had: on the device, and on the host for one process."""

    device: int
    host: int

    @property
    def usable(self) -> Room:
        return Room(int(self.device * USABLE), int(self.host * USABLE))


@dataclass(frozen=True)
class Peak:
    """Bytes on the device, and on the host of what is kept there for the device."""

    device: int
    host: int

    def __str__(self) -> str:
        return format_bytes(self.device) + (f" (host {format_bytes(self.host)})" if self.host else "")


@dataclass(frozen=True)
class Forecast:
    """What a policy takes: the peak of each stage, and for `stream` how many blocks stay on the device.

    `ahead`: for a stage, the components of a later one that are loaded while it runs.
    """

    policy: Policy
    stages: Mapping[str, Peak]
    num_kept: Mapping[str, int] = field(default_factory=dict)
    ahead: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def device(self) -> int:
        return max((peak.device for peak in self.stages.values()), default=0)

    @property
    def host(self) -> int:
        return max((peak.host for peak in self.stages.values()), default=0)

    @property
    def largest(self) -> str:
        """The stage with the highest peak on the device."""
        return max(self.stages, key=lambda name: self.stages[name].device)

    def fits(self, room: Room) -> bool:
        return self.device <= room.usable.device and self.host <= room.usable.host

    def __str__(self) -> str:
        return f"{self.policy} {Peak(self.device, self.host)}"


class Forecaster:
    """Predicts for stages, in order, whose components have these sizes."""

    def __init__(self, stages: Mapping[str, StageNeed], sizes: Mapping[str, ComponentSize]) -> None:
        self._stages = stages
        self._sizes = sizes
        self._streamable = [name for name, size in sizes.items() if size.blocks]

    def forecast(self, policy: Policy, room: Room, num_kept: int | None = None) -> Forecast:
        """`stream` leaves `num_kept` blocks of each component on the device; None: as many as `room` has space for."""
        kept: dict[str, int] = {}
        if policy in ("stream", "stream from disk"):
            kept = {name: min(num_kept or 0, len(self._sizes[name].blocks)) for name in self._streamable}
            if num_kept is None:
                peaks = self._peaks(policy, kept, room)
                kept = {name: self._most_kept(name, peaks, room) for name in kept}
        return Forecast(policy, self._peaks(policy, kept, room), kept)

    def with_ahead(self, forecast: Forecast, room: Room) -> Forecast:
        """`forecast` with each stage's components loaded during the last stage before it that has any, where that fits
        as well: those without have hardly anything to do."""
        known: set[str] = set()
        during = ""
        for (name, stage), (_, following) in itertools.pairwise(self._stages.items()):
            known.update(stage.components)
            during = name if stage.components or not during else during
            coming = [each for each in following.components if each not in known]
            if not coming:
                continue
            ahead = {**forecast.ahead, during: coming}
            peaks = self.loading(ahead)._peaks(forecast.policy, forecast.num_kept, room)
            tried = dataclasses.replace(forecast, stages=peaks, ahead=ahead)
            forecast = tried if tried.fits(room) else forecast
        return forecast

    def loading(self, ahead: Mapping[str, Sequence[str]]) -> Forecaster:
        """For the same stages, with these components of later ones loaded while they run."""
        stages = {name: dataclasses.replace(need, ahead=ahead.get(name, ())) for name, need in self._stages.items()}
        return Forecaster(stages, self._sizes)

    def at_rest(self, component: str, forecast: Forecast) -> Peak:
        """What a component takes that stays where it is after its last use in a run of this forecast."""
        size = self._sizes.get(component, ComponentSize(0))
        kept = forecast.num_kept.get(component, len(size.blocks))
        host = size.streamed(kept) if forecast.policy == "stream" else 0
        return Peak(size.on_device(kept, used=False), host)

    def leaves_room(self, forecast: Forecast, room: Room, resting: Mapping[str, Peak]) -> bool:
        """Whether a run of this forecast fits beside components `resting` while it doesn't use them, with the same
        activations."""
        for position in range(len(self._stages)):
            alive = self._on_device(forecast.policy, position) | self._alive(position)
            idle = [peak for name, peak in resting.items() if name not in alive]
            kept = forecast.num_kept
            free = room.usable.device - self._weights(forecast.policy, kept, position)
            left = free - sum(peak.device for peak in idle)
            needed = self._activations(position, max(0, free))
            if needed > left or self._activations(position, left) != needed:
                return False
            host = self._host_bytes(forecast.policy, position, self._on_device(forecast.policy, position), kept)
            if host + sum(peak.host for peak in idle) > room.usable.host:
                return False
        return True

    def _most_kept(self, name: str, peaks: Mapping[str, Peak], room: Room) -> int:
        """The most blocks of a component with which all stages fit, given their peaks with none of them kept."""
        size = self._sizes[name]

        def fits(count: int, position: int) -> bool:
            stage = list(self._stages)[position]
            used = name in self._in_use(position)
            others = peaks[stage].device - size.on_device(0, used=used)
            return others + size.on_device(count, used=used) <= room.usable.device

        there = [position for position in range(len(self._stages)) if name in self._alive(position)]
        counts = range(len(size.blocks), 0, -1)
        return next((count for count in counts if all(fits(count, position) for position in there)), 0)

    def _peaks(self, policy: Policy, kept: Mapping[str, int], room: Room) -> dict[str, Peak]:
        peaks: dict[str, Peak] = {}
        for position, name in enumerate(self._stages):
            weights = self._weights(policy, kept, position)
            device = weights + self._activations(position, max(0, room.usable.device - weights))
            peaks[name] = Peak(device, self._host_bytes(policy, position, self._on_device(policy, position), kept))
            read = self._read_streams(position)
            for maker in (key for key, each in self._stages.items() if each in read):
                peaks[maker] = Peak(max(peaks[maker].device, device), peaks[maker].host)
        return peaks

    def _weights(self, policy: Policy, kept: Mapping[str, int], position: int) -> int:
        on_device = self._on_device(policy, position)
        return FIXED_BYTES + sum(self._device_bytes(each, kept, position) for each in on_device)

    def _activations(self, position: int, free: int) -> int:
        """Of the stage, and of what makes the streams that it reads, which works meanwhile."""
        stage = list(self._stages.values())[position]
        streams = self._read_streams(position)
        working = streams if stage.makes_stream else [*streams, stage]
        return max((each.activations(free) for each in working), default=0)

    def _read_streams(self, position: int) -> list[StageNeed]:
        """The stages whose streams this one reads."""
        reads = set(list(self._stages.values())[position].reads)
        return [each for each in self._open(position) if each.makes_stream and set(each.writes) & reads]

    def _device_bytes(self, component: str, kept: Mapping[str, int], position: int) -> int:
        size = self._sizes[component]
        return size.on_device(kept.get(component, len(size.blocks)), used=component in self._in_use(position))

    def _host_bytes(self, policy: Policy, position: int, on_device: set[str], kept: Mapping[str, int]) -> int:
        if policy == "swap":
            return sum(self._sizes[each].whole for each in self._alive(position) - on_device)
        if policy == "stream":
            return sum(self._sizes[each].streamed(kept[each]) for each in self._alive(position) & kept.keys())
        return 0

    def _on_device(self, policy: Policy, position: int) -> set[str]:
        """Components of which more is there than a stream of blocks."""
        if policy == "resident":
            names = list(self._stages.values())[: position + 1]
            return {component for stage in names for component in stage.loads}
        if policy == "swap":
            begun = list(self._stages.values())[: position + 1]
            ahead = {each for stage in begun for each in stage.ahead}
            return self._in_use(position) | ahead.difference(*(stage.components for stage in begun))
        return self._alive(position)

    def _in_use(self, position: int) -> set[str]:
        return {component for stage in self._open(position) for component in stage.components}

    def _alive(self, position: int) -> set[str]:
        """Components that are loaded by then and not freed yet."""
        stages = list(self._stages.values())
        loaded = {component for stage in stages[: position + 1] for component in stage.loads}
        needed = {component for stage in stages[position:] for component in stage.components}
        return loaded & (needed | self._in_use(position))

    def _open(self, position: int) -> list[StageNeed]:
        """The stage itself, and earlier ones whose streams are still to be read."""
        stages = list(self._stages.values())
        earlier = [
            stage
            for number, stage in enumerate(stages[:position])
            if stage.makes_stream and self._last_reader(number) >= position
        ]
        return [*earlier, stages[position]]

    def _last_reader(self, position: int) -> int:
        """Of what the stage writes; itself where nobody reads it."""
        stages = list(self._stages.values())
        written = set(stages[position].writes)
        readers = [number for number in range(position + 1, len(stages)) if written & set(stages[number].reads)]
        return max(readers, default=position)
