"""Forwards and guided steps with and without what makes them faster, full size: `python tests/perf/steps.py`.

Random weights. Needs one CUDA device with 60 GB and some 120 s. Medians of 5 (of 3 for what takes longest) after 2
warm-ups, in milliseconds by CUDA events; "first" is what the first call took in seconds, with what it compiles unless
that is on disk already (a new TORCHINDUCTOR_CACHE_DIR and TRITON_CACHE_DIR have nothing). Relative L2 is to the plain
path in bf16; graphs must give the very bits.
"""

from __future__ import annotations

import functools
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files
from math import inf
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from profile_forward import report
from torch.profiler import ProfilerActivity, profile

from ltxgen.artifacts.lora import linear_weights
from ltxgen.attention.auto import AutoConfig
from ltxgen.attention.choice import Side, choose, role_specs
from ltxgen.attention.protocol import DeviceFacts
from ltxgen.diffusion.grids import AudioGrid, VideoGrid
from ltxgen.diffusion.positions import audio_positions, video_positions
from ltxgen.models.transformer import (
    ModalityInput,
    PassesModel,
    Perturbation,
    Transformer,
    TransformerConfig,
    TransformerPass,
    Velocities,
)
from ltxgen.models.transformer.block import BlockFunctions, TransformerBlock
from ltxgen.models.transformer.compilation import compile_blocks
from ltxgen.models.transformer.elementwise import TORCH, gelu_product
from ltxgen.models.transformer.float8 import Float8Layers, use_float8
from ltxgen.models.transformer.graphs import GraphedPasses

SIZES = {96: (64, 96), 1536: (256, 384), 6144: (512, 768), 24576: (1024, 1536)}  # video tokens: height, width
TEXT_TOKENS, NUM_FRAMES, FPS = 1024, 121, 24
STG = Perturbation(frozenset({28}), frozenset({28}))
ISOLATED = Perturbation(isolate_modalities=True)
KINDS = {"forward": 1, "guided": 4}  # of a step's passes, the first so many
Work = tuple[int, str]
HOST: Work = (96, "forward")
FORWARDS: list[Work] = [(1536, "forward"), (6144, "forward"), (24576, "forward")]
GUIDED: list[Work] = [(1536, "guided"), (6144, "guided")]
LONG = {(24576, "forward"), (6144, "guided")}
FLOAT8 = Path(__file__).parents[2] / "conf/precision/fp8.yaml"


def random_transformer(device: torch.device) -> Transformer:
    architecture = json.loads((files("ltxgen.artifacts") / "architectures" / "ltx23_22b.json").read_text())
    config = TransformerConfig.from_metadata(architecture["checkpoint"])
    specs = role_specs(Side(config.video.head_dim), Side(config.audio.head_dim))
    attention = choose(AutoConfig(), DeviceFacts.of(device), torch.bfloat16, specs).functions
    with torch.device("meta"):
        transformer = Transformer(config, attention=attention)
    for name, parameter in list(transformer.named_parameters()):
        dtype = torch.float32 if "scale_shift_table" in name else torch.bfloat16
        spread = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.02
        values = torch.randn(parameter.shape, dtype=dtype, device=device) * spread + ("norm" in name)
        owner, _, leaf = name.rpartition(".")
        setattr(transformer.get_submodule(owner), leaf, torch.nn.Parameter(values, requires_grad=False))
    return transformer.eval()


def guided_passes(height: int, width: int, device: torch.device) -> list[TransformerPass]:
    """Text, negative, stg and isolated."""
    video_grid = VideoGrid.from_pixels(NUM_FRAMES, height, width)
    audio_grid = AudioGrid.from_video(NUM_FRAMES, FPS)

    def modality(tokens: int, positions: torch.Tensor, text_width: int) -> ModalityInput:
        def randn(*shape: int) -> torch.Tensor:
            return torch.randn(shape, dtype=torch.bfloat16, device=device)

        level = torch.full((1,), 0.9, device=device)
        latents, context = randn(1, tokens, 128), randn(1, TEXT_TOKENS, text_width)
        return ModalityInput(latents, level[:, None], level, positions.to(device), context)

    video = modality(video_grid.num_tokens, video_positions(video_grid, FPS, torch.bfloat16), 4096)
    audio = modality(audio_grid.num_tokens, audio_positions(audio_grid), 2048)
    negative = [replace(x, context=torch.randn_like(x.context)) for x in (video, audio)]
    return [
        TransformerPass(video, audio),
        TransformerPass(*negative),
        TransformerPass(video, audio, STG),
        TransformerPass(video, audio, ISOLATED),
    ]


def milliseconds(run: Callable[[], object], repeats: int = 5) -> tuple[float, float]:
    """The median of a run, and the seconds of the first one."""
    started = time.perf_counter()
    run()
    torch.cuda.synchronize()
    first = time.perf_counter() - started
    run()
    taken = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        taken.append(begin.elapsed_time(end))
    return statistics.median(taken), first


def compare_gelu(tokens: int, device: torch.device) -> None:
    """The first product of the feed-forward: alone, with GELU after it, with GELU in it."""
    sizes = [(1, tokens, 4096), (16384, 4096), (16384,)]
    x, weight, bias = (torch.randn(size, device=device, dtype=torch.bfloat16) / size[-1] ** 0.25 for size in sizes)
    after = torch.compile(lambda y: F.gelu(y, approximate="tanh"))
    product = F.linear(x, weight, bias)
    forms = {
        "product": lambda: F.linear(x, weight, bias),
        "gelu": lambda: after(product),
        "product with gelu": lambda: gelu_product(x, weight, bias),
    }
    times = ", ".join(f"{name} {1000 * milliseconds(run, 50)[0]:.0f} us" for name, run in forms.items())
    exact = F.gelu(F.linear(x[:, :512].float(), weight.float(), bias.float()), approximate="tanh")
    plain, fused = F.gelu(product, approximate="tanh")[:, :512], gelu_product(x, weight, bias)[:, :512]
    errors = [((found.float() - exact).norm() / exact.norm()).item() for found in (plain, fused)]
    print(f"{tokens} tokens: {times}; relative L2 to fp32: after {errors[0]:.2e}, within {errors[1]:.2e}", flush=True)


def relative_l2(found: list[Velocities], wanted: list[Velocities]) -> float:
    pairs = [pair for one, other in zip(found, wanted, strict=True) for pair in zip(one, other, strict=True)]
    return max(((x.float() - y.float()).norm() / y.float().norm()).item() for x, y in pairs)


def use_plain(transformer: Transformer) -> None:
    """Neither fused kernels nor compiled blocks."""
    for module in transformer.modules():
        if hasattr(module, "elementwise"):
            module.elementwise = TORCH
        if isinstance(module, TransformerBlock):
            module.functions = BlockFunctions(TransformerBlock.advance, TransformerBlock.project_texts)


@contextmanager
def surviving(form: str) -> Iterator[None]:
    """What fails is told, and the rest goes on."""
    try:
        yield
    except Exception:
        print(f"{form} failed", flush=True)
        traceback.print_exc(file=sys.stdout)


class Table:
    """Forms of one transformer, measured beside each other."""

    def __init__(self, transformer: Transformer, device: torch.device) -> None:
        self.transformer = transformer
        self.steps = {tokens: guided_passes(*size, device) for tokens, size in SIZES.items()}
        self.results: dict[str, dict[Work, list[Velocities]]] = {}
        self.rows: list[tuple[int, str, str, float, float, float]] = []
        self.started = time.perf_counter()

    def step(self, work: Work) -> list[TransformerPass]:
        tokens, kind = work
        return self.steps[tokens][: KINDS[kind]]

    def measure(self, form: str, model: PassesModel, wanted: Sequence[Work], until: float = inf) -> None:
        """`until` so many seconds of the whole script, after which what is left is left out."""
        found = self.results.setdefault(form, {})
        for work in wanted:
            if time.perf_counter() - self.started > until:
                print(f"{form}: no time for {work}", flush=True)
                continue
            step = self.step(work)
            taken, first = milliseconds(functools.partial(model.forward_passes, step), 3 if work in LONG else 5)
            found[work] = model.forward_passes(step)
            reference = self.results.get("plain", {}).get(work, found[work])
            self.rows.append((*work, form, taken, first, relative_l2(found[work], reference)))
            print(*self.rows[-1], flush=True)

    def profile(self, form: str, work: Work) -> None:
        """Where the time of `form`, which is in force, goes."""
        with surviving("profile"):
            with profile(activities=[ProfilerActivity.CUDA]) as seen:
                self.transformer.forward_passes(self.step(work))
                torch.cuda.synchronize()
            report(next(taken for *what, taken, _, _ in self.rows if what == [*work, form]), seen)

    def show(self) -> None:
        print(f"{'tokens':>6} {'what':8} {'how':20} {'ms':>8} {'first s':>8} {'relative L2':>12}")
        for tokens, kind, form, taken, first, error in sorted(self.rows, key=lambda row: (row[0], row[1])):
            print(f"{tokens:6d} {kind:8} {form:20} {taken:8.1f} {first:8.1f} {error:12.1e}")
        print(f"{HOST[0]} tokens take the GPU less than the host, whose launches are what is timed there")


@torch.inference_mode()
def main() -> None:
    device = torch.device("cuda", 0)
    print(torch.cuda.get_device_name(device), torch.__version__)
    torch.backends.cuda.matmul.allow_tf32 = False
    with surviving("GELU within the product"):
        for tokens in (1536, 6144):
            compare_gelu(tokens, device)
    transformer = random_transformer(device)
    table = Table(transformer, device)
    with surviving("plain"):
        table.measure("plain", transformer, [HOST, *FORWARDS])
        for work in GUIDED:  # to compare with
            table.results["plain"][work] = transformer.forward_passes(table.step(work))
    with surviving("fused"):
        from ltxgen.models.transformer.fused import use_fused_kernels

        use_fused_kernels(transformer)
        table.measure("fused", transformer, [HOST, *FORWARDS, *GUIDED])
        table.profile("fused", (6144, "forward"))
    with surviving("fused, graphs"):
        graphed = GraphedPasses(transformer, max_tokens=10**6)
        table.measure("fused, graphs", graphed, [HOST, *FORWARDS[:2], *GUIDED])
        for work, results in table.results["fused, graphs"].items():
            assert relative_l2(results, table.results["fused"][work]) == 0, f"{work}: graphs give other numbers"
    graphed = None  # and with it the recordings' memory
    with surviving("compiled"):
        use_plain(transformer)
        compile_blocks(transformer, lambda note: print(note, flush=True))
        table.measure("compiled", transformer, [HOST, *FORWARDS, *reversed(GUIDED)], until=75)
    with surviving("fp8, fused"):
        use_plain(transformer)
        skipped = yaml.safe_load(FLOAT8.read_text())["skip"]
        use_float8(transformer, Float8Layers(tuple(skipped)).among(linear_weights(transformer).items()))
        use_fused_kernels(transformer)
        table.measure("fp8, fused", transformer, [HOST, *FORWARDS, *GUIDED])
        table.profile("fp8, fused", (6144, "forward"))
        graphed = GraphedPasses(transformer, max_tokens=10**6)
        table.measure("fp8, fused, graphs", graphed, FORWARDS[:2])
    table.show()


if __name__ == "__main__":
    main()
