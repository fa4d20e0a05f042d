"""The figures of a run as data: what the table shows, the JSON holds and a later run is compared with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from ltxgen.bench.timing import Timing
from ltxgen.config.errors import Problem, Refusal

TOLERANCE = 0.05


@dataclass(frozen=True)
class PeerFigure:
    """A peer's milliseconds for the same work: `calls` times the median of `times`, taken in turn with ours.

    `relative_l2` is how far our result is from the peer's, None where they were not compared.
    """

    ms: float
    times: tuple[float, ...]
    calls: int = 1
    relative_l2: float | None = None
    peak_bytes: int | None = None

    @classmethod
    def of(cls, timing: Timing, calls: int = 1, relative_l2: float | None = None) -> Self:
        return cls(calls * timing.median, timing.milliseconds, calls, relative_l2, timing.peak_bytes)


@dataclass(frozen=True)
class Entry:
    """One case at one size.

    `ms` is the median of `times`, `floor_ms` the least that the ceilings allow and `fp8_floor_ms` with matrix products
    in fp8. `tolerance` is how far a later run may be off before a comparison calls it worse or better; edit it in a
    baseline.
    """

    case: str
    size: str
    ms: float
    times: tuple[float, ...] = ()
    floor_ms: float | None = None
    fp8_floor_ms: float | None = None
    peak_bytes: int | None = None
    peers: Mapping[str, PeerFigure] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = TOLERANCE

    @classmethod
    def of(cls, case: str, size: str, timing: Timing, **more: Any) -> Self:
        return cls(case, size, timing.median, timing.milliseconds, peak_bytes=timing.peak_bytes, **more)

    @property
    def name(self) -> str:
        return f"{self.case} {self.size}"

    @property
    def share_of_floor(self) -> float | None:
        return None if self.floor_ms is None else self.floor_ms / self.ms


@dataclass
class Results:
    """What one `ltxgen bench` measured: `machine` is versions and device, `overrides` what the config was made of,
    `skipped` what its time was not enough for."""

    machine: Mapping[str, str]
    overrides: tuple[str, ...]
    ceilings: Mapping[str, Any] | None = None
    entries: list[Entry] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def write(self, path: Path) -> None:
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(path)

    @classmethod
    def read(cls, path: Path, option: str) -> Results:
        """What `write` left; `option` names what asked for it. Refusal for a file that is none."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            entries = [_entry(each) for each in data["entries"]]
            return cls(data["machine"], tuple(data["overrides"]), data["ceilings"], entries, data.get("skipped", []))
        except OSError as error:
            raise Refusal([Problem(option, str(path), f"can't be read: {error.strerror}")]) from error
        except (ValueError, TypeError, KeyError) as error:
            message = f"is not what `ltxgen bench --json` writes: {type(error).__name__}: {error}"
            raise Refusal([Problem(option, str(path), message)]) from error


def _entry(data: Mapping[str, Any]) -> Entry:
    peers = {name: PeerFigure(**figure) for name, figure in data["peers"].items()}
    return Entry(**{**data, "peers": peers})
