"""Forwards and guided steps with and without what makes them faster, full size: `python tests/perf/steps.py`.

Random weights. Needs one CUDA device with 60 GB and some 100 s. Medians of 5 after 2 warm-ups, in milliseconds by CUDA
events; "first" is what the first call took in seconds, with what it compiles unless that is on disk already (a new
TORCHINDUCTOR_CACHE_DIR has nothing). Relative L2 is to the plain path in bf16; graphs must give the very bits.
"""

from __future__ import annotations

import functools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files

import torch
import torch.nn.functional as F

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
from ltxgen.models.transformer.block import GELUProjection
from ltxgen.models.transformer.compilation import compile_blocks, gelu_linear
from ltxgen.models.transformer.graphs import GraphedPasses

SIZES = {1536: (256, 384), 6144: (512, 768)}  # video tokens: height, width
TEXT_TOKENS, NUM_FRAMES, FPS = 1024, 121, 24
STG = Perturbation(frozenset({28}), frozenset({28}))
ISOLATED = Perturbation(isolate_modalities=True)
KINDS = {"forward": 1, "guided": 4}  # of a step's passes, the first so many


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
        "product with gelu": lambda: gelu_linear(x, weight, bias),
    }
    times = ", ".join(f"{name} {1000 * milliseconds(run, 50)[0]:.0f} us" for name, run in forms.items())
    exact = F.gelu(F.linear(x[:, :512].float(), weight.float(), bias.float()), approximate="tanh")
    plain, fused = F.gelu(product, approximate="tanh")[:, :512], gelu_linear(x, weight, bias)[:, :512]
    errors = [((found.float() - exact).norm() / exact.norm()).item() for found in (plain, fused)]
    print(f"{tokens} tokens: {times}; relative L2 to fp32: after {errors[0]:.2e}, within {errors[1]:.2e}", flush=True)


def relative_l2(found: list[Velocities], wanted: list[Velocities]) -> float:
    pairs = [pair for one, other in zip(found, wanted, strict=True) for pair in zip(one, other, strict=True)]
    return max(((x.float() - y.float()).norm() / y.float().norm()).item() for x, y in pairs)


def set_gelu_within(transformer: Transformer, within: bool) -> None:
    for module in transformer.modules():
        if isinstance(module, GELUProjection):
            module.function = gelu_linear if within else None


@torch.inference_mode()
def main() -> None:
    device = torch.device("cuda", 0)
    print(torch.cuda.get_device_name(device), torch.__version__)
    torch.backends.cuda.matmul.allow_tf32 = False
    for tokens in SIZES:
        compare_gelu(tokens, device)
    transformer = random_transformer(device)
    steps = {tokens: guided_passes(*size, device) for tokens, size in SIZES.items()}
    work = [(tokens, kind) for tokens in SIZES for kind in KINDS]
    plain = {(tokens, kind): transformer.forward_passes(steps[tokens][: KINDS[kind]]) for tokens, kind in work}
    found: dict[str, dict[tuple[int, str], list[Velocities]]] = {}
    rows = []

    def measure(form: str, model: PassesModel, wanted: list[tuple[int, str]]) -> None:
        found[form] = {}
        for tokens, kind in wanted:
            step = steps[tokens][: KINDS[kind]]
            taken, first = milliseconds(functools.partial(model.forward_passes, step))
            result = found[form][tokens, kind] = model.forward_passes(step)
            rows.append((tokens, kind, form, taken, first, relative_l2(result, plain[tokens, kind])))
            print(*rows[-1], flush=True)

    measure("plain", transformer, [(tokens, "forward") for tokens in SIZES])
    compile_blocks(transformer, lambda note: print(note, flush=True))
    set_gelu_within(transformer, within=False)
    measure("compiled", transformer, [(tokens, "forward") for tokens in SIZES])
    set_gelu_within(transformer, within=True)
    measure("compiled, gelu within", transformer, work)
    graphs = "compiled, gelu within, graphs"
    measure(
        graphs, GraphedPasses(transformer, max_tokens=10**6), [(1536, kind) for kind in KINDS] + [(6144, "forward")]
    )
    for case, results in found[graphs].items():
        assert relative_l2(results, found["compiled, gelu within"][case]) == 0, f"{case}: graphs give other numbers"
    print(f"{'tokens':>6} {'what':8} {'how':30} {'ms':>8} {'first s':>8} {'relative L2':>12}")
    for tokens, kind, form, taken, first, error in sorted(rows, key=lambda row: (row[0], row[1])):
        print(f"{tokens:6d} {kind:8} {form:30} {taken:8.1f} {first:8.1f} {error:12.1e}")


if __name__ == "__main__":
    main()
