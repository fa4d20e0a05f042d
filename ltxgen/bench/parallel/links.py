"""How fast the ranks of this machine exchange, for the messages that the layouts send: what the cost model assumes.

N ranks, C width of the video stream, T video tokens
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ltxgen.bench.parallel.trial import Clock, Together
from ltxgen.models.transformer import TransformerConfig
from ltxgen.models.transformer.flops import block_parameters
from ltxgen.parallel.axes import Axis

ALL_TO_ALL, RING, ALL_GATHER, BROADCAST = "all-to-all", "ring", "all-gather", "broadcast"
SMALL = "latency"  # a message of which only the start counts
_SMALL_BYTES = 4096
_FILLS_MS = 20.0  # so many calls are timed together that the device is busy for this long
_MOST_CALLS = 100


@dataclass(frozen=True)
class Message:
    """An exchange of one kind in which each rank receives about `received_bytes`; `what` of a run it is."""

    kind: str
    what: str
    received_bytes: int


@dataclass(frozen=True)
class Link:
    """A message, and the milliseconds from its start to its end."""

    message: Message
    ms: float

    @property
    def gbps(self) -> float:
        """GB/s that a rank receives."""
        return self.message.received_bytes / self.ms / 1e6


def messages_of(
    config: TransformerConfig, tokens: Mapping[str, int], num_ranks: int, bytes_per_value: int
) -> list[Message]:
    """What all N ranks exchange in one layout each, at T tokens by the name of the size; latencies first."""
    small = [Message(kind, SMALL, _SMALL_BYTES) for kind in (ALL_TO_ALL, RING, ALL_GATHER)]
    away = (num_ranks - 1) / num_ranks
    large = []
    for size, count in tokens.items():
        piece = math.ceil(count / num_ranks) * config.video.width * bytes_per_value
        x0 = count * config.video.in_channels * bytes_per_value
        large += [
            Message(ALL_TO_ALL, f"q, k, v at {size}", int(3 * piece * away)),
            Message(RING, f"k, v at {size}", 2 * piece),
            Message(ALL_GATHER, f"velocity at {size}", int(x0 * away)),
            Message(BROADCAST, f"prediction at {size}", x0),
        ]
    block = block_parameters(config, has_video=True) * bytes_per_value
    return [*small, *large, Message(ALL_GATHER, "weights of a block", int(block * away))]


def measure_links(messages: Sequence[Message], axis: Axis, device: torch.device, together: Together) -> Iterator[Link]:
    """Each message's time as this rank sees it, the median of three rounds; all ranks of `axis` call this."""
    for message in messages:
        call = _exchange(message, axis, device)
        call()  # connects
        first = _milliseconds(call, 1, device, together)
        calls = min(_MOST_CALLS, max(1, math.ceil(_FILLS_MS / max(first, 1e-3))))
        calls = int(_agreed(calls, axis, device))
        rounds = sorted(_milliseconds(call, calls, device, together) for _ in range(3))
        yield Link(message, rounds[1])


def _agreed(calls: int, axis: Axis, device: torch.device) -> float:
    """The same number on every rank: the first one's."""
    value = torch.tensor([float(calls)], device=device)
    axis.broadcast(value, owner=0)
    return value.item()


def _milliseconds(call: Callable[[], object], calls: int, device: torch.device, together: Together) -> float:
    together()
    clock = Clock(device)
    clock.mark()
    for _ in range(calls):
        call()
    clock.mark()
    return sum(clock.intervals()) / calls


def _exchange(message: Message, axis: Axis, device: torch.device) -> Callable[[], object]:
    size = message.received_bytes

    def random(*shape: int) -> Tensor:
        return torch.randint(0, 256, shape, dtype=torch.uint8, device=device)

    match message.kind:
        case "all-to-all":
            chunks = random(axis.size, max(1, size // (axis.size - 1)))
            return lambda: axis.all_to_all(chunks)
        case "ring":
            block = random(size)
            return lambda: axis.pass_on(block).wait()
        case "all-gather":
            own = random(max(1, size // (axis.size - 1)))
            return lambda: axis.all_gather(own)
        case _:
            whole = random(size)
            return lambda: axis.broadcast(whole, owner=0)
