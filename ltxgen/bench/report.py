"""Tables for people: the figures of a run, and how they compare with a baseline's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.table import Table

from ltxgen.bench.results import Entry, Results

NOTHING = "-"
Verdict = Literal["same", "better", "worse", "not in the baseline", "not measured"]


def figures(results: Results) -> Table:
    """One row a case: ours, its floor, and each peer with ours over the peer's."""
    peers = list(dict.fromkeys(name for entry in results.entries for name in entry.peers))
    table = Table("case", "size", title=_machine(results), title_justify="left")
    for name in ("ms", "floor ms", "of floor"):
        table.add_column(name, justify="right")
    for name in peers:
        table.add_column(f"{name} ms", justify="right")
        table.add_column("ours/it", justify="right")
    table.add_column("peak GiB", justify="right")
    table.add_column("relative L2", justify="right")
    for entry in results.entries:
        table.add_row(*_row(entry, peers))
    return table


def _row(entry: Entry, peers: Sequence[str]) -> Iterator[str]:
    yield from (entry.case, entry.size, f"{entry.ms:.1f}", _number(entry.floor_ms, ".1f"))
    yield _number(entry.share_of_floor, ".2f")
    for name in peers:
        figure = entry.peers.get(name)
        yield _number(None if figure is None else figure.ms, ".1f")
        yield _number(None if figure is None else entry.ms / figure.ms, ".3f")
    yield _number(None if entry.peak_bytes is None else entry.peak_bytes / 2**30, ".2f")
    differences = [figure.relative_l2 for figure in entry.peers.values() if figure.relative_l2 is not None]
    yield _number(max(differences, default=None), ".1e")


def _number(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)


def _machine(results: Results) -> str:
    return f"{results.machine['device_name']}, torch {results.machine['torch']}"


def ceiling_lines(results: Results) -> Iterator[str]:
    """What the floors were counted with."""
    if results.ceilings is None:
        return
    for dtype, rate in results.ceilings["gemm"].items():
        yield f"matrix products in {dtype}: {rate / 1e12:.4g} TFLOP/s"
    yield f"attention ({results.ceilings['attention_backend']}): {results.ceilings['attention'] / 1e12:.4g} TFLOP/s"
    yield f"copy: {results.ceilings['copy'] / 1e12:.3g} TB/s read and written"


def run_lines(results: Results) -> Iterator[str]:
    """Where the time of each whole run went."""
    for entry in results.entries:
        if "stages" not in entry.details:
            continue
        yield f"{entry.name}: {entry.ms / 1000:.2f} s"
        for name, stage in entry.details["stages"].items():
            peak = stage["peak_bytes"] / 2**30
            times = f"{stage['seconds']:8.2f} s   loading {stage['load_seconds']:7.2f} s"
            yield f"  {name:<14} {times}   peak {peak:6.2f} GiB"
        computing, loading, rest = (entry.details[f"{name}_seconds"] for name in ("computing", "loading", "rest"))
        share = 1000 * rest / entry.ms
        yield f"  {'all stages':<14} {computing:8.2f} s   loading {loading:7.2f} s"
        yield f"  {'beside them':<14} {rest:8.2f} s   {share:.1%} of the run"


@dataclass(frozen=True)
class Comparison:
    """One figure of a case now and in the baseline. `ratio` is now over then, so above 1 is slower or larger."""

    name: str
    measure: str
    ratio: float | None
    tolerance: float
    verdict: Verdict


def compare(results: Results, baseline: Results) -> list[Comparison]:
    """Every case of either side, time and peak memory.

    On another device only the distance from the floor means something, so it takes the place of milliseconds there.
    """
    same_device = results.machine["device_name"] == baseline.machine["device_name"]
    now = {entry.name: entry for entry in results.entries}
    then = {entry.name: entry for entry in baseline.entries}
    compared = []
    for name in dict.fromkeys([*then, *now]):
        if name not in then:
            compared.append(Comparison(name, "time", None, now[name].tolerance, "not in the baseline"))
        elif name not in now:
            compared.append(Comparison(name, "time", None, then[name].tolerance, "not measured"))
        else:
            compared += _compare_entries(now[name], then[name], same_device)
    return compared


def _compare_entries(now: Entry, then: Entry, same_device: bool) -> Iterator[Comparison]:
    if same_device:
        yield _compared(now, then, "time", now.ms / then.ms)
    elif now.floor_ms and then.floor_ms:
        yield _compared(now, then, "time over floor", now.ms / now.floor_ms / (then.ms / then.floor_ms))
    if now.peak_bytes and then.peak_bytes:
        yield _compared(now, then, "peak memory", now.peak_bytes / then.peak_bytes)


def _compared(now: Entry, then: Entry, measure: str, ratio: float) -> Comparison:
    worse, better = ratio > 1 + then.tolerance, ratio < 1 - then.tolerance
    return Comparison(now.name, measure, ratio, then.tolerance, "worse" if worse else "better" if better else "same")


def regressions(comparisons: Sequence[Comparison]) -> list[Comparison]:
    return [each for each in comparisons if each.verdict == "worse"]


def comparison_table(comparisons: Sequence[Comparison], results: Results, baseline: Results) -> Table:
    table = Table("case", "measure", title=f"against {_machine(baseline)}", title_justify="left")
    for name in ("now/then", "tolerance"):
        table.add_column(name, justify="right")
    table.add_column("")
    for each in comparisons:
        style = {"worse": "red", "better": "green"}.get(each.verdict)
        table.add_row(
            each.name, each.measure, _number(each.ratio, ".3f"), f"{each.tolerance:.0%}", each.verdict, style=style
        )
    if results.overrides != baseline.overrides:
        table.caption = (
            f"the baseline's overrides are others: {' '.join(baseline.overrides) or 'none'}; "
            f"here {' '.join(results.overrides) or 'none'}"
        )
    return table


def report_regressions(results: Results, baseline: Results, console: Any) -> int:
    """Print how `results` compare with `baseline`; returns 1 if something is worse than that allows, else 0."""
    comparisons = compare(results, baseline)
    console.print(comparison_table(comparisons, results, baseline))
    worse, compared = regressions(comparisons), [each for each in comparisons if each.ratio is not None]
    console.print(f"{len(worse)} of {len(compared)} figures compared are worse than the baseline allows")
    return 1 if worse else 0
