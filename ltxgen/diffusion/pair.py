"""One value for video and one for audio."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Pair(Generic[T]):
    """The two modalities' values; None for a modality that the run doesn't have."""

    video: T | None
    audio: T | None

    def map(self, function: Callable[..., U], *others: Pair[Any]) -> Pair[U]:
        """`function(own, *others')` for each modality, video first; what is None here stays None."""
        return Pair(
            None if self.video is None else function(self.video, *(other.video for other in others)),
            None if self.audio is None else function(self.audio, *(other.audio for other in others)),
        )
