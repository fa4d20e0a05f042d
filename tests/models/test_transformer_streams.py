"""Audio's kernels beside video's: the order that the waits give, followed operation by operation as a GPU might run it.

Streams here are counters: how many operations of each stream surely precede a stream's next one. So a read before its
write is seen whether or not it would have gone well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from test_transformer import LTX2, LTX23, build
from test_transformer_passes import ALONE, TOGETHER, modalities, passes
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ltxgen.models.transformer import Transformer, Velocities
from ltxgen.models.transformer.cuda_streams import TwoStreams, use_two_streams

CPU = torch.device("cpu")
Moment = tuple["Stream", int]
"""An operation: its stream, and its number there."""
Storages = dict[int, torch.UntypedStorage]


class Stream:
    def __init__(self, device: torch.device = CPU, priority: int = 0) -> None:
        self.launched = 0
        self.precede: dict[Stream, int] = {}

    def wait_stream(self, other: Stream) -> None:
        for stream, number in [*other.precede.items(), (other, other.launched)]:
            self.precede[stream] = max(self.precede.get(stream, 0), number)

    def follows(self, moment: Moment) -> bool:
        """Whether what comes next on this stream comes after `moment`."""
        stream, number = moment
        return stream is self or self.precede.get(stream, 0) >= number


class Backend:
    """What `torch.cuda` has of streams."""

    Stream = Stream

    def __init__(self) -> None:
        self.current = Stream()

    def current_stream(self, device: torch.device) -> Stream:
        return self.current

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before


@dataclass
class Memory:
    """One storage. When nobody holds it any more its stream may give it to what comes next there."""

    storage: StorageWeakRef
    stream: Stream
    written: Moment
    used: dict[Stream, int] = field(default_factory=dict)  # the last use on each stream


class Launches(TorchDispatchMode):
    """Puts each operation on the stream that is current. `faults`: those that may run before what they rely on."""

    def __init__(self, backend: Backend) -> None:
        super().__init__()
        self.backend = backend
        self.known: dict[int, Memory] = {}
        self.faults: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        stream, kwargs = self.backend.current, kwargs or {}
        for memory in self._freed(stream):
            if not all(stream.follows(moment) for moment in memory.used.items()):
                self.faults.append(f"{func} may get memory that is still read")
        result = func(*args, **kwargs)
        given = _storages((args, kwargs))
        written = _storages(_changed(func, args, kwargs)) | {
            key: storage for key, storage in _storages(result).items() if key not in given
        }
        if written:  # else it is another view of the same memory, and nothing runs
            self._run(func, stream, given, written)
        return result

    def _run(self, func: Any, stream: Stream, given: Storages, written: Storages) -> None:
        stream.launched += 1
        now = (stream, stream.launched)
        for key, storage in (given | written).items():
            if key not in self.known:
                self.known[key] = Memory(StorageWeakRef(storage), stream, (stream, 0))
            memory = self.known[key]
            if not stream.follows(memory.written):
                self.faults.append(f"{func} may read or write what is not written yet")
            if key in written:
                if not all(stream.follows(moment) for moment in memory.used.items()):
                    self.faults.append(f"{func} may write what is still read")
                memory.written = now
            memory.used[stream] = stream.launched

    def _freed(self, stream: Stream) -> list[Memory]:
        """Of `stream`, since this was asked last."""
        keys = [key for key, each in self.known.items() if each.stream is stream and each.storage.expired()]
        return [self.known.pop(key) for key in keys]


def _storages(values: Any) -> Storages:
    tensors = [x for x in tree_leaves(values) if isinstance(x, Tensor)]
    return {x.untyped_storage()._cdata: x.untyped_storage() for x in tensors}


def _changed(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments that `func` writes to."""
    names = [each.name for each in func._schema.arguments if each.alias_info is not None and each.alias_info.is_write]
    given = dict(zip((each.name for each in func._schema.arguments), args, strict=False)) | kwargs
    return [given[name] for name in names if name in given]


@torch.inference_mode()
def ran(model: Transformer, kind: str, step: str, streams: TwoStreams, backend: Backend) -> tuple[list, list[str]]:
    """The velocities of two steps, and what was wrong with their order."""
    use_two_streams(model, streams)
    together = passes(*modalities(kind, 1), step)
    with Launches(backend) as launches:
        velocities = [model.forward_passes(together) for _ in range(2)]
    assert streams._audio.launched > 50
    assert not streams.held or isinstance(streams, NoJoin)
    return velocities, launches.faults


def same(found: Sequence[Velocities], wanted: Sequence[Velocities]) -> bool:
    pairs = [pair for one, other in zip(found, wanted, strict=True) for pair in zip(one, other, strict=True)]
    return all(x is y is None or torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("step", ["guided", "one", "many_forks"])
@pytest.mark.parametrize("batched_tokens", [ALONE, TOGETHER])
@pytest.mark.parametrize("kind", ["levels", "masks", "no_audio_wanted", "ltx2"])
def test_whatever_crosses_is_waited_for(kind: str, batched_tokens: int, step: str):
    settings, backend = LTX2 if kind == "ltx2" else LTX23, Backend()
    model = build(settings, batched_tokens=batched_tokens)
    velocities, faults = ran(model, kind, step, TwoStreams(CPU, backend=backend), backend)
    assert not faults
    with torch.inference_mode():
        wanted = build(settings, batched_tokens=batched_tokens).forward_passes(passes(*modalities(kind, 1), step))
    assert all(same(found, wanted) for found in velocities)


class NoFork(TwoStreams):
    def fork(self) -> None:
        pass


class NoJoin(TwoStreams):
    def join(self) -> None:
        pass


class VideoDoesNotWait(TwoStreams):
    def meet(self, crossing: Sequence[Tensor]) -> None:
        self._audio.wait_stream(self._current())
        self.held = crossing


class AudioDoesNotWait(TwoStreams):
    def meet(self, crossing: Sequence[Tensor]) -> None:
        self._current().wait_stream(self._audio)
        self.held = crossing


class NothingHeld(TwoStreams):
    def meet(self, crossing: Sequence[Tensor]) -> None:
        super().meet(())


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        (NoFork, "not written yet"),
        (NoJoin, "not written yet"),
        (VideoDoesNotWait, "not written yet"),
        (AudioDoesNotWait, "not written yet"),
        (NothingHeld, "may get memory that is still read"),
    ],
)
def test_each_wait_and_what_is_held_is_needed(kind: type[TwoStreams], fault: str):
    backend = Backend()
    _, faults = ran(build(LTX23), "levels", "guided", kind(CPU, backend=backend), backend)
    assert any(fault in each for each in faults)


def test_weights_may_come_before_a_block_and_go_after_it():
    """As `memory=stream` has it, from hooks around the block."""
    backend, wanted = Backend(), build(LTX23)
    model, kept = build(LTX23), dict(wanted.named_parameters())

    def come(block: nn.Module, inputs: Any) -> None:
        for name, parameter in block.named_parameters():
            parameter.copy_(kept[f"transformer_blocks.{list(model.transformer_blocks).index(block)}.{name}"])

    def go(block: nn.Module, inputs: Any, output: Any) -> None:
        for parameter in block.parameters():
            parameter.fill_(torch.nan)

    for block in model.transformer_blocks:
        block.register_forward_pre_hook(come)
        block.register_forward_hook(go)
    velocities, faults = ran(model, "levels", "guided", TwoStreams(CPU, backend=backend), backend)
    assert not faults
    with torch.inference_mode():
        assert same(velocities[1], wanted.forward_passes(passes(*modalities("levels", 1), "guided")))
