"""What this machine reaches at most: matrix products, attention and copies, measured in the run that is judged by them.

Random data throughout: zeros run faster than anything real.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ltxgen.attention.protocol import DeviceFacts, RoleSpec, backend, backend_kinds
from ltxgen.bench.timing import Log, alternate, time_once
from ltxgen.models.transformer import TransformerConfig
from ltxgen.runtime.environment import DTYPES

GPU_TOKENS = (6144, 24576)  # video of 768x512x121 and of 1536x1024x121: enough to fill a GPU
FP8 = "float8"
_FP8_SINCE = (9, 0)  # with a scale for each row
# `reference` holds every score in memory, `flex` compiles for each shape; neither is ever the fastest.
_NOT_TRIED = frozenset({"reference", "flex"})
_COPIED_BYTES = {"cuda": 2**32, "cpu": 2**26}


@dataclass(frozen=True)
class Measured:
    """One figure: operations a second, or bytes a second read and written (`copy`)."""

    what: str
    shape: str
    rate: float


@dataclass(frozen=True)
class Ceilings:
    """The highest rates over all shapes that were tried. `gemm` is by dtype, `measured` has every figure behind it."""

    gemm: dict[str, float]
    attention: float
    attention_backend: str
    copy: float
    measured: tuple[Measured, ...]


def measure_ceilings(
    config: TransformerConfig, tokens: Sequence[int], device: torch.device, dtype: torch.dtype, log: Log
) -> Ceilings:
    """Matrix products at the shape of the video feed-forward, attention at that of video self attention.

    `tokens` are the lengths to try on a CPU; a GPU is asked for what it can do when it is full.
    """
    lengths = sorted(set(GPU_TOKENS if device.type == "cuda" else tokens))
    measured = [
        *_gemms(config.video.width, lengths, device, dtype),
        *_attentions(config.video.num_heads, config.video.head_dim, lengths, device, dtype, log),
        _copy(device),
    ]
    for each in measured:
        unit = "TB/s" if each.what == "copy" else "TFLOP/s"
        log(f"  {each.what} {each.shape}: {each.rate / 1e12:.4g} {unit}")
    attention = max((each for each in measured if each.what.startswith("attention")), key=lambda each: each.rate)
    gemm: dict[str, float] = {}
    for each in measured:
        if each.what.startswith("gemm "):
            name = each.what.removeprefix("gemm ")
            gemm[name] = max(gemm.get(name, 0.0), each.rate)
    return Ceilings(gemm, attention.rate, attention.what.removeprefix("attention "), measured[-1].rate, tuple(measured))


def sustained_products(width: int, device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """Operations a second of matrix products that go on for so long, in the last half of it: a GPU at work slows down
    to what its power and its cooling allow."""
    length = GPU_TOKENS[-1] if device.type == "cuda" else 1024
    product = _product(_name(dtype), length, width, device)
    taken = [time_once(product, device)]
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        taken.append(time_once(product, device))
    return 2 * length * width * 4 * width / statistics.median(taken[len(taken) // 2 :]) * 1000


def _gemms(width: int, lengths: Sequence[int], device: torch.device, dtype: torch.dtype) -> Iterator[Measured]:
    on_gpu = device.type == "cuda"
    kinds = dict.fromkeys((_name(dtype), *(DTYPES if on_gpu else ())))
    if on_gpu and torch.cuda.get_device_capability(device) >= _FP8_SINCE:
        kinds[FP8] = None
    for kind in kinds:
        for length in lengths[:1] if kind == "float32" and on_gpu else lengths:
            work = 2 * length * width * 4 * width
            rate = work / _seconds(_product(kind, length, width, device), device)
            yield Measured(f"gemm {kind}", f"{length} x {width} x {4 * width}", rate)


def _product(kind: str, length: int, width: int, device: torch.device) -> Callable[[], object]:
    if kind != FP8:
        dtype = getattr(torch, kind)
        x, weight = _random(length, width, device=device, dtype=dtype), _random(4 * width, width, device=device)
        weight = weight.to(dtype)
        return lambda: torch.nn.functional.linear(x, weight)
    x, weight = (_random(rows, width, device=device).to(torch.float8_e4m3fn) for rows in (length, 4 * width))
    rows, columns = (torch.ones(shape, device=device) for shape in ((length, 1), (1, 4 * width)))
    return lambda: torch._scaled_mm(x, weight.T, rows, columns, out_dtype=torch.bfloat16, use_fast_accum=True)


def _attentions(
    num_heads: int, head_dim: int, lengths: Sequence[int], device: torch.device, dtype: torch.dtype, log: Log
) -> Iterator[Measured]:
    """Every exact backend that runs here."""
    facts = DeviceFacts.of(device)
    role = RoleSpec("video_self", head_dim=head_dim)
    for kind in backend_kinds():
        candidate = backend(kind)
        if kind in _NOT_TRIED or candidate.approximates:
            continue
        if candidate.available(facts, dtype) is not None or candidate.supports(role) is not None:
            continue
        for length in lengths:
            q, k, v = (_random(1, num_heads, length, head_dim, device=device, dtype=dtype) for _ in range(3))
            work = 4 * num_heads * head_dim * length**2
            try:
                rate = work / _seconds(functools.partial(candidate, q, k, v, None), device)
            except RuntimeError as error:  # a package built for another GPU says so only when its kernel starts
                log(f"  attention {kind} does not run: {str(error).splitlines()[0]}")
                break
            yield Measured(f"attention {kind}", f"{length} tokens, {num_heads} x {head_dim}", rate)


def _copy(device: torch.device) -> Measured:
    size = _COPIED_BYTES[device.type]
    source = _random(size // 4, device=device)
    target = torch.empty_like(source)
    return Measured("copy", f"{size / 2**30:.4g} GiB", 2 * size / _seconds(lambda: target.copy_(source), device))


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call; as many to a round as fill about 20 ms, so that launching does not count on a GPU."""
    first = min(alternate({"": call}, device, rounds=2)[""].milliseconds)
    repeats = max(1, math.ceil(20 / max(first, 1e-3))) if device.type == "cuda" else 1

    def several() -> None:
        for _ in range(repeats):
            call()

    return alternate({"": several}, device, warm_ups=1)[""].median / repeats / 1000


def _random(*shape: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device=device, dtype=dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
