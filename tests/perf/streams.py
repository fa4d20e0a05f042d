"""Audio's kernels beside video's (`runtime.streams`) against one stream, full size: `python tests/perf/streams.py`.

Random weights, bf16, fused kernels, launched one by one and recorded as CUDA graphs. Needs one CUDA device with 60 GB
and some 60 s. One run of each form after another, again and again: medians, by CUDA events, in milliseconds. "other
bits" counts the runs whose velocities differ from those of one stream, of which there must be none. What doesn't fit
into a minute is left out.

`--tiny` runs it all on a CPU at tiny sizes, where there is one stream and nothing is recorded.
"""

from __future__ import annotations

import functools
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from steps import KINDS, SIZES, Work, guided_passes, random_transformer, relative_l2, surviving
from torch.profiler import ProfilerActivity, profile

from ltxgen.models.transformer import PassesModel, Transformer, Velocities
from ltxgen.models.transformer.cuda_streams import ONE_STREAM, CudaStreams, TwoStreams, use_two_streams
from ltxgen.models.transformer.graphs import graphed

SECONDS = 55  # of the whole, after which nothing is begun
WARM_UPS = 2  # the second records a graph
WORKS: dict[Work, int] = {  # and how often each form runs
    (1536, "forward"): 7,
    (6144, "forward"): 5,
    (1536, "guided"): 5,
    (6144, "guided"): 3,
}
TINY_SIZE = (64, 96)
Form = tuple[str, str]
"""Of streams: one, two, or two of equal priority; and of launches: one by one, or as graphs."""


class Row(NamedTuple):
    work: Work
    form: Form
    ms: float
    against_one: float
    other_bits: int
    runs: int


def milliseconds(run: Callable[[], list[Velocities]], device: torch.device) -> tuple[float, list[Velocities]]:
    if device.type != "cuda":
        started = time.perf_counter()
        found = run()
        return 1000 * (time.perf_counter() - started), found
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    found = run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end), found


def streams_of(device: torch.device) -> dict[str, CudaStreams]:
    if device.type != "cuda":
        return {"one": ONE_STREAM, "two": ONE_STREAM}
    return {"one": ONE_STREAM, "two": TwoStreams(device), "two, equal": TwoStreams(device, priority=0)}


def models_of(transformer: Transformer, work: Work, streams: dict[str, CudaStreams]) -> dict[Form, PassesModel]:
    tokens, kind = work
    # What only answers a question isn't worth the time of the longest.
    long = (tokens, kind) == (6144, "guided")
    forms = [(name, how) for how in ("", "graphs")[: 1 if long else 2] for name in list(streams)[: 2 if long else None]]
    return {(name, how): graphed(transformer, 10**6 if how else 0) for name, how in forms}


def measure(transformer: Transformer, work: Work, streams: dict[str, CudaStreams], device: torch.device) -> list[Row]:
    tokens, kind = work
    size = SIZES[tokens] if device.type == "cuda" else TINY_SIZE
    step = guided_passes(*size, transformer.config, device)[: KINDS[kind]]
    models = models_of(transformer, work, streams)
    wanted: list[Velocities] | None = None
    taken: dict[Form, list[float]] = defaultdict(list)
    other_bits: dict[Form, int] = defaultdict(int)
    for number in range(WARM_UPS + WORKS[work]):
        for form, model in models.items():
            use_two_streams(transformer, streams[form[0]])
            ms, found = milliseconds(functools.partial(model.forward_passes, step), device)
            wanted = wanted or found
            other_bits[form] += relative_l2(found, wanted) != 0
            if number >= WARM_UPS:
                taken[form].append(ms)
    medians = {form: statistics.median(each) for form, each in taken.items()}
    rows = [
        Row(work, form, ms, ms / medians["one", form[1]], other_bits[form], WARM_UPS + WORKS[work])
        for form, ms in medians.items()
    ]
    for row in rows:
        print(*row, flush=True)
    return rows


def busy(transformer: Transformer, work: Work, streams: CudaStreams, device: torch.device) -> None:
    """How long each stream has kernels running in a step launched one by one, and how long either has."""
    step = guided_passes(*SIZES[work[0]], transformer.config, device)[: KINDS[work[1]]]
    use_two_streams(transformer, streams)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        transformer.forward_passes(step)
        torch.cuda.synchronize()
    results = seen.profiler.kineto_results  # type: ignore[union-attr]
    spans: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for each in results.events():
        if each.device_type() == torch.autograd.DeviceType.CUDA:
            spans[each.device_resource_id()].append((each.start_ns(), each.start_ns() + each.duration_ns()))
    each_stream = ", ".join(f"{covered(those):.1f} ({len(those)} kernels)" for those in spans.values())
    either = covered([span for those in spans.values() for span in those])
    print(f"{work}: ms in which streams run kernels: {each_stream}; either {either:.1f}", flush=True)


def covered(spans: Sequence[tuple[int, int]]) -> float:
    """Milliseconds in the union of spans of nanoseconds."""
    total, until = 0, 0
    for start, stop in sorted(spans):
        total += max(stop - max(start, until), 0)
        until = max(until, stop)
    return total / 1e6


@torch.inference_mode()
def main(tiny: bool) -> None:
    started = time.perf_counter()
    device = torch.device("cpu") if tiny else torch.device("cuda", 0)
    print("cpu" if tiny else torch.cuda.get_device_name(device), torch.__version__)
    transformer = random_transformer(device, "ltx23_tiny" if tiny else "ltx23_22b")
    if not tiny:
        from ltxgen.models.transformer.fused import use_fused_kernels

        use_fused_kernels(transformer)
    streams, rows = streams_of(device), []
    for work in WORKS:
        if time.perf_counter() - started > SECONDS:
            print(f"no time for {work}")
            continue
        with surviving(str(work)):
            rows += measure(transformer, work, streams, device)
        if not tiny and work[1] == "forward":
            with surviving("profile"):
                busy(transformer, work, streams["two"], device)
    print(f"{time.perf_counter() - started:.0f} s in all")
    print(f"{'tokens':>6} {'what':8} {'launched':10} {'streams':11} {'ms':>8} {'of one':>7} {'other bits':>11}")
    for (tokens, kind), (name, how), ms, against_one, other_bits, runs in rows:
        print(
            f"{tokens:6d} {kind:8} {how or 'one by one':10} {name:11} {ms:8.1f} {against_one:7.3f} "
            f"{other_bits:5d} of {runs}"
        )
    if any(row.other_bits for row in rows):
        sys.exit("two streams gave other bits than one")


if __name__ == "__main__":
    main("--tiny" in sys.argv[1:])
