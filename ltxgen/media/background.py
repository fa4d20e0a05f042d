"""Work on tensors in a thread of its own, while the caller makes the next one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import torch
from torch import Tensor


class Background:
    """Calls `work` on each tensor that it is given, in order, in one thread; used as a context manager.

    One tensor may wait behind the one in work; giving another blocks. On a GPU the work runs on a stream of its own,
    after what was queued for the tensor and beside what is queued later. An error of `work` is raised by a later call
    or at the end of the block, which waits for all that was given, or drops what hasn't begun when the block raises.
    """

    def __init__(self, work: Callable[[Tensor], None]) -> None:
        self._work = work
        self._thread = ThreadPoolExecutor(1)
        self._given: deque[Future[None]] = deque()
        self._stream: torch.cuda.Stream | None = None

    def __call__(self, tensor: Tensor) -> None:
        while len(self._given) > 1:
            self._given.popleft().result()
        made = torch.cuda.current_stream(tensor.device).record_event() if tensor.is_cuda else None
        self._given.append(self._thread.submit(self._run, tensor, made))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while self._given and kind is None:
                self._given.popleft().result()
        finally:
            self._thread.shutdown(cancel_futures=True)

    @torch.inference_mode()  # a mode of the thread
    def _run(self, tensor: Tensor, made: torch.cuda.Event | None) -> None:
        if made is None:
            self._work(tensor)
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream(tensor.device)
        with torch.cuda.stream(self._stream):
            made.wait()
            self._work(tensor)
        tensor.record_stream(self._stream)
