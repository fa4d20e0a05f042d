"""Figures of the rows, as the JSON holds them: a step's milliseconds on the slowest rank, and all else as details."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ltxgen.bench.parallel.links import Link
from ltxgen.bench.parallel.rows import Row
from ltxgen.bench.parallel.trial import Trial
from ltxgen.bench.results import Entry

CASE = "parallel"
LINK = "link"


def step_entry(row: Row, trials: Sequence[Trial], difference: Mapping[str, float] | None, order: str | None) -> Entry:
    """`trials` of the ranks that took part; `difference` from one GPU's latents, by modality."""
    parallel, work, predicted = row.plan.parallel, row.stage.work, row.predicted
    assert parallel is not None, "a plan that can run knows its ranks"
    assert work is not None, "a denoising stage has steps"
    assert predicted is not None, "a denoising stage has steps"
    planned = parallel.traffic(work)
    details = {
        "num_steps": row.num_steps,
        "meshes": row.meshes,
        "auto": row.auto,
        "graphs": row.graphs,
        "passes": max(map(len, work.steps)),
        "tokens": vars(work.tokens),
        "planned_bytes": {} if row.alone else planned.by_kind,
        "predicted_ms": 1000 * predicted.seconds,
        "predicted_exchange_ms": 1000 * predicted.exchange,
        "relative_l2": difference,
        "order": order,
    }
    return _entry(row, trials, details)


def decode_entry(row: Row, trials: Sequence[Trial], equal: bool | None) -> Entry:
    """`equal`: whether the frames are one rank's, bit for bit."""
    described = row.stage.describe()
    planned = described.get("received bytes on rank 0", {})
    return _entry(row, trials, {"tiles": described.get("tiles"), "planned_bytes": planned, "equal": equal})


def _entry(row: Row, trials: Sequence[Trial], details: Mapping[str, Any]) -> Entry:
    slowest = max(trials, key=lambda trial: trial.ms)
    peaks = [trial.peak_bytes for trial in trials if trial.peak_bytes is not None]
    ranks = [{"ms": each.ms, "received_bytes": each.received, "exchange_ms": each.exchange_ms} for each in trials]
    own = {"stage": row.stage.name, "kind": row.kind, "layout": row.layout, "ranks": ranks}
    return Entry(
        f"{CASE} {row.stage.name} {row.layout}",
        row.size,
        slowest.ms,
        slowest.times,
        peak_bytes=max(peaks, default=None),
        details={**own, **details},
    )


def link_entry(link: Link, num_ranks: int) -> Entry:
    """An exchange of all ranks, as the first one saw it."""
    message = link.message
    details = {"kind": message.kind, "what": message.what, "received_bytes": message.received_bytes}
    return Entry(f"{LINK} {message.kind} on {num_ranks}", message.what, link.ms, details={**details, "gbps": link.gbps})


def told(entry: Entry) -> str:
    """One line, for the log."""
    peak = "" if entry.peak_bytes is None else f", peak {entry.peak_bytes / 2**30:.1f} GiB"
    rate = f", {entry.details['gbps']:.1f} GB/s" if "gbps" in entry.details else ""
    exchanged = max((sum(each["exchange_ms"].values()) for each in entry.details.get("ranks", ())), default=0.0)
    exchange = f", {exchanged:.1f} ms of it in exchanges" if exchanged else ""
    difference = entry.details.get("relative_l2")
    apart = f", relative L2 {' and '.join(f'{each:.1e}' for each in difference.values())}" if difference else ""
    return f"{entry.name}: {entry.ms:.3f} ms{rate}{exchange}{peak}{apart}"
