"""Components loaded in a thread of their own while an earlier stage runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

from ltxgen.stage.protocol import PartRequest


class Loading(Protocol):
    """A component that has all but its weights. `load` reads them, in any thread; after `cancel` it soon raises."""

    def load(self) -> Any: ...
    def cancel(self) -> None: ...


class Loaded(NamedTuple):
    """A component's weights as they were loaded, and the seconds that took."""

    part: Any
    seconds: float


class Source(Protocol):
    def start(self, request: PartRequest) -> Loading | None: ...


class LoadingAhead:
    """Loads the components of `source` one after the other. `start` prepares one, here and now."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="loading")
        self._pending: dict[str, tuple[Loading, Future[Loaded]]] = {}

    def start(self, request: PartRequest) -> None:
        loading = self._source.start(request)
        if loading is None:
            return
        self._pending[request.name] = loading, self._thread.submit(_timed, loading)

    def take(self, name: str) -> Loaded | None:
        """The component, once it is loaded; None for one that wasn't started. Raises what loading it raised."""
        pending = self._pending.pop(name, None)
        return None if pending is None else pending[1].result()

    def stop(self) -> Sequence[str]:
        """Drop what nobody took; returns its names when nothing is being loaded any more."""
        for loading, _ in self._pending.values():
            loading.cancel()
        self._thread.shutdown()
        names = list(self._pending)
        self._pending.clear()
        return names


def _timed(loading: Loading) -> Loaded:
    started = time.perf_counter()
    return Loaded(loading.load(), time.perf_counter() - started)
