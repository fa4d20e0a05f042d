"""Tables of the figures, for a terminal and in Markdown, made from the JSON alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ltxgen.bench.parallel.entries import CASE, LINK
from ltxgen.bench.parallel.links import SMALL
from ltxgen.bench.results import Entry, Results

NOTHING = "-"
STEPS = (
    "stage", "layout", "ms", "predicted ms", "speed-up", "of ideal", "MiB moved", "planned MiB", "exchange ms",
    "peak GiB", "video L2", "sound L2", "PSNR dB", "of other orders", "within",
)  # fmt: skip
RUNS = ("size", "mesh", "seconds", "speed-up", "of ideal", "with decoding", "")
TILES = (
    "size",
    "decoded by",
    "ms",
    "speed-up",
    "of ideal",
    "tiles a rank",
    "MiB moved",
    "planned",
    "peak GiB",
    "frames",
)
UNEQUAL = 0.05  # of GPUs' speeds, from which on it is told
LINKS = ("exchange", "of", "MB received", "ms", "GB/s")


@dataclass(frozen=True)
class Sheet:
    """A table before it has a form; `notes` stand below it."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def rich(self) -> Table:
        table = Table(title=self.title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for number, header in enumerate(self.headers):
            table.add_column(header, justify="left" if number < 2 else "right", no_wrap=number < 2)
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        lines = [_line(self.headers), f"|{'-|' * len(self.headers)}", *map(_line, self.rows)]
        return "\n\n".join([f"{self.title}:", "\n".join(lines), *self.notes])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def sheets(results: Results) -> list[Sheet]:
    """All there is to see: steps at each size, whole runs of them, decoding, exchanges."""
    figures = Figures(results)
    made = [*map(figures.steps, figures.sizes), figures.runs(), figures.tiles(), figures.links()]
    return [sheet for sheet in made if sheet.rows]


@dataclass(frozen=True)
class Figures:
    """The entries of one benchmark."""

    results: Results

    @property
    def sizes(self) -> list[str]:
        return list(dict.fromkeys(entry.size for entry in self._stepped()))

    def steps(self, size: str) -> Sheet:
        entries = self._stepped(size)
        machine = self.results.machine
        graphs = sorted({entry.details["stage"] for entry in entries if entry.details["graphs"]})
        orders = [f"{each.details['stage']} {each.details['order']}" for each in entries if each.details["order"]]
        notes = [
            f"One GPU: the first of them alone, with the same weights, attention {machine['attention']} (by itself it "
            f"chooses {machine['attention_of_one_gpu']}), CUDA graphs in "
            f"{', '.join(graphs) or 'no stage'}.",
            *_products(machine),
            "ms: of a step, the median on the slowest rank. exchange ms: of it, waiting for late ranks included, on "
            "the ranks with the least and the most; not timed inside CUDA graphs.",
            "L2: relative, of same-seed latents to one GPU's. Of other orders: in parts of the most that one GPU is "
            f"from itself when it sums in another order ({', '.join(orders) or 'not measured'}).",
        ]
        return Sheet(f"Steps at {size}, {self._machine}", STEPS, list(map(self._step, entries)), notes)

    def _step(self, entry: Entry) -> tuple[str, ...]:
        details = entry.details
        apart = details["relative_l2"] or {}
        return (
            details["stage"],
            details["layout"],
            f"{entry.ms:.1f}",
            f"{details['predicted_ms']:.1f}",
            *self._gain(entry),
            *_moved(entry),
            _exchanged(entry),
            _gib(entry.peak_bytes),
            *(f"{apart[name]:.1e}" if name in apart else NOTHING for name in ("video", "audio")),
            _decibels(details),
            *self._verdict(entry),
        )

    def _verdict(self, entry: Entry) -> tuple[str, str]:
        """How far the latents are from one GPU's, in parts of how far those of its other orders are at most."""
        details = entry.details
        if details["kind"] not in ("layout", "sharded") or not details["relative_l2"]:
            return NOTHING, NOTHING
        orders = [each.details["relative_l2"] for each in self._like(entry, "order") if each.details["relative_l2"]]
        if not orders:
            return NOTHING, "not measured"
        ratio = max(
            _ratio(apart, max(order[name] for order in orders)) for name, apart in details["relative_l2"].items()
        )
        return f"{ratio:.2f}", "yes" if ratio <= 1 else "no"

    def runs(self) -> Sheet:
        """Denoising of whole runs, a step of each stage times the recipe's steps; and with it, decoding."""
        rows: list[tuple[str, ...]] = []
        for size in self.sizes:
            alone, layouts = (
                [each for each in self._stepped(size) if each.details["kind"] == kind] for kind in ("one", "layout")
            )
            if not alone:
                continue
            whole = sum(map(_extrapolated, alone))
            steps = " + ".join(str(entry.details["num_steps"]) for entry in alone)
            decoding = self._decoding(size)
            end = f"{whole + decoding[0]:.2f} s" if decoding else NOTHING
            rows.append((size, "one GPU", f"{whole:.2f}", "1.00 x", NOTHING, end, f"{steps} steps"))
            for mesh in dict.fromkeys(mesh for entry in layouts for mesh in entry.details["meshes"]):
                parts = [entry for entry in layouts if mesh in entry.details["meshes"]]
                if len(parts) < len(alone):
                    continue  # not all of its stages were measured
                seconds = sum(map(_extrapolated, parts))
                if decoding:
                    both = seconds + decoding[1]
                    end = f"{both:.2f} s, {(whole + decoding[0]) / both:.2f} x"
                choice = "chosen by parallel=auto" if mesh == parts[0].details["auto"] else ""
                rows.append((size, mesh, f"{seconds:.2f}", *self._share(whole / seconds), end, choice))
        return Sheet(f"Denoising of whole runs, extrapolated from the steps above, {self._machine}", RUNS, rows)

    def _decoding(self, size: str) -> tuple[float, float] | None:
        """Seconds that the picture takes on one rank and on all, where both were measured."""
        times = {each.details["kind"]: each.ms / 1000 for each in self._decoded() if each.size == size}
        return (times["one"], times["layout"]) if times.keys() >= {"one", "layout"} else None

    def tiles(self) -> Sheet:
        rows = []
        for entry in self._decoded():
            details = entry.details
            equal = {True: "equal bits", False: "DIFFER", None: NOTHING}[details["equal"]]
            dealt = ", ".join(map(str, details["tiles"] or ()))
            time = (f"{entry.ms:.0f}", *self._gain(entry))
            rows.append((entry.size, details["layout"], *time, dealt, *_moved(entry), _gib(entry.peak_bytes), equal))
        return Sheet(f"Decoding of the picture, {self._machine}", TILES, rows)

    def links(self) -> Sheet:
        rows = []
        for entry in self._of(LINK):
            kind, what, received = (entry.details[name] for name in ("kind", "what", "received_bytes"))
            rows.append((kind, what, f"{received / 1e6:.4g}", f"{entry.ms:.3f}", f"{entry.details['gbps']:.1f}"))
        fits = self.fits()
        notes = [f"{kind}: {1e6 * start:.0f} us to start, then {gbps:.3g} GB/s" for kind, (start, gbps) in fits.items()]
        if fits:
            start, gbps = max(each[0] for each in fits.values()), min(each[1] for each in fits.values())
            notes.append(
                f"For the cost model: link_gbps: {gbps:.3g} in conf/hardware, and COLLECTIVE_SECONDS = {start:.1e} in "
                "ltxgen/parallel/cost.py"
            )
        return Sheet(f"Exchanges, {self._machine}", LINKS, rows, notes)

    def fits(self) -> dict[str, tuple[float, float]]:
        """By kind of exchange: seconds that it takes to start, and GB/s of the largest message beyond them."""
        of_links = [{**entry.details, "ms": entry.ms} for entry in self._of(LINK)]
        found = {}
        for small in (link for link in of_links if link["what"] == SMALL):
            alike = [link for link in of_links if link["kind"] == small["kind"]]
            large = max(alike, key=lambda link: link["received_bytes"])
            beyond = large["received_bytes"] - small["received_bytes"]
            if beyond > 0 and large["ms"] > small["ms"]:  # not so among messages that all are small
                found[small["kind"]] = small["ms"] / 1000, beyond / (large["ms"] - small["ms"]) / 1e6
        return found

    @property
    def _machine(self) -> str:
        machine = self.results.machine
        return f"{machine['ranks']} x {machine['device_name']}, torch {machine['torch']}"

    def _of(self, case: str) -> list[Entry]:
        return [entry for entry in self.results.entries if entry.case.startswith(f"{case} ")]

    def _stepped(self, size: str | None = None) -> list[Entry]:
        return [each for each in self._of(CASE) if "passes" in each.details and size in (None, each.size)]

    def _decoded(self) -> list[Entry]:
        return [each for each in self._of(CASE) if "tiles" in each.details]

    def _like(self, entry: Entry, kind: str) -> list[Entry]:
        """The rows of that kind of the same stage and size."""
        wanted = entry.size, entry.details["stage"], kind
        return [each for each in self._of(CASE) if (each.size, each.details["stage"], each.details["kind"]) == wanted]

    def _gain(self, entry: Entry) -> tuple[str, str]:
        """Over one GPU, and the part of as many times as there are ranks."""
        alone = self._like(entry, "one")
        if not alone or entry.details["kind"] == "order":
            return NOTHING, NOTHING
        return ("1.00 x", NOTHING) if entry is alone[0] else self._share(alone[0].ms / entry.ms)

    def _share(self, gain: float) -> tuple[str, str]:
        return f"{gain:.2f} x", f"{gain / int(self.results.machine['ranks']):.0%}"


def _extrapolated(entry: Entry) -> float:
    return entry.details["num_steps"] * entry.ms / 1000


def _products(machine: Mapping[str, str]) -> Iterator[str]:
    """What each GPU did alone while all did, which files of earlier versions don't have."""
    if "products" not in machine:
        return
    rates = list(map(float, machine["products"].split(", ")))
    slower = 1 - min(rates) / max(rates)
    apart = f": one is {slower:.0%} slower, and every layout waits for it" if slower > UNEQUAL else ""
    yield f"Matrix products of the ranks, all at work, TFLOP/s: {machine['products']}{apart}."


def _moved(entry: Entry) -> tuple[str, str]:
    """MiB that the rank that receives the most did receive in a step, and should by the plan."""
    counted = max((sum(each["received_bytes"].values()) for each in entry.details["ranks"]), default=0)
    return _mib(counted), _mib(sum(entry.details["planned_bytes"].values()))


def _exchanged(entry: Entry) -> str:
    """The least and the most milliseconds of a rank's step in exchanges, where they were timed."""
    details = entry.details
    if details["kind"] in ("one", "order") or details["graphs"]:
        return NOTHING
    exchanges = sorted(sum(each["exchange_ms"].values()) for each in details["ranks"])
    return f"{exchanges[0]:.1f}-{exchanges[-1]:.1f}"


def _mib(size: float) -> str:
    return f"{size / 2**20:.2f}" if size else NOTHING


def _gib(size: int | None) -> str:
    return NOTHING if size is None else f"{size / 2**30:.2f}"


def _decibels(details: Mapping[str, float | None]) -> str:
    if "psnr_db" not in details:
        return NOTHING
    return "equal" if details["psnr_db"] is None else f"{details['psnr_db']:.1f}"


def _ratio(one: float, other: float) -> float:
    return one / other if other else math.inf if one else 0.0


def left_out(results: Results) -> Iterator[str]:
    """What the budget left out."""
    for what in results.skipped:
        yield f"left out for want of time: {what}"
