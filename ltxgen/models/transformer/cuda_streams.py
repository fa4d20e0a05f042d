"""Where a block's kernels are launched: one after the other, or audio's beside video's.

Audio has few tokens: its kernels, half of all, are short and leave most of a GPU idle. They wait for video's in one
place of a block only, where the modalities attend to each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

AUDIO_PRIORITY = -1
"""Before video's, which has 0: kernels that fill the GPU let a short one in where one of them ends, and go on beside
it."""


class CudaStreams(Protocol):
    """The streams of a block's kernels: audio's are launched within `audio`, all others outside of it."""

    def fork(self) -> None:
        """What audio launches from here on follows all that was launched before."""

    def audio(self) -> AbstractContextManager[Any]: ...

    def meet(self, crossing: Sequence[Tensor]) -> None:
        """What either launches from here on follows all that was launched before. So each may read those of `crossing`
        that the other has written; nothing else may be read across, between `fork` and `join`."""

    def join(self) -> None:
        """What is launched from here on follows all that audio has launched."""


class OneStream:
    """See `CudaStreams`: all in the order in which it is launched."""

    def fork(self) -> None:
        pass

    def audio(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def meet(self, crossing: Sequence[Tensor]) -> None:
        pass

    def join(self) -> None:
        pass


class TwoStreams:
    """See `CudaStreams`: audio's kernels on a stream of their own. Recorded as a CUDA graph, they become a branch.

    torch gives freed memory to what next asks for some on the stream that had it, which does not wait for another
    stream that may still read it. Three things keep that from happening. What was there before `fork` is held by who
    calls the block until after `join`. What crosses is held here until both streams have met again, or joined: then
    those who read it stand before all that is launched later, for audio's stream gets nothing between `join` and the
    next `fork`. All else is read on the stream that wrote it. So no tensor is marked (`Tensor.record_stream`), which
    would delay its reuse by an event, and within a recording until its end.
    """

    def __init__(self, device: torch.device, priority: int = AUDIO_PRIORITY, backend: Any = torch.cuda) -> None:
        self._backend = backend
        self._device = device
        self._audio = backend.Stream(device, priority=priority)
        self.held: Sequence[Tensor] = ()

    def fork(self) -> None:
        self._audio.wait_stream(self._current())

    def audio(self) -> AbstractContextManager[Any]:
        return self._backend.stream(self._audio)

    def meet(self, crossing: Sequence[Tensor]) -> None:
        current = self._current()
        current.wait_stream(self._audio)
        self._audio.wait_stream(current)
        self.held = crossing

    def join(self) -> None:
        self._current().wait_stream(self._audio)
        self.held = ()

    def _current(self) -> Any:
        return self._backend.current_stream(self._device)


ONE_STREAM = OneStream()


def use_two_streams(transformer: nn.Module, streams: CudaStreams) -> None:
    """Let the blocks launch audio's kernels on a stream of their own: the same numbers to the bit.

    Not for compiled blocks, nor where ranks share a pass: they exchange audio and video in the order of their launch.
    """
    for block in transformer.get_submodule("transformer_blocks").children():
        block.cuda_streams = streams  # type: ignore[assignment]
