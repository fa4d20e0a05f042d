"""Times a guided step against four plain forwards, full size, random bf16 weights: `python -m tests.perf.guided_step`.

Needs one CUDA device with 60 GB. Medians of 5 after 2 warm-ups, in milliseconds by CUDA events; what the first call of
a form takes, compilation with it, stands in seconds in the last column.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files

import torch

from ltxgen.attention.auto import AutoConfig
from ltxgen.attention.choice import Side, choose, role_specs
from ltxgen.attention.protocol import DeviceFacts
from ltxgen.diffusion.grids import AudioGrid, VideoGrid
from ltxgen.diffusion.positions import audio_positions, video_positions
from ltxgen.models.transformer import ModalityInput, Perturbation, Transformer, TransformerConfig, TransformerPass
from ltxgen.models.transformer.compilation import compile_blocks

SIZES = {"stage 1 of 1536x1024": (512, 768), "stage 2 of 1536x1024": (1024, 1536), "stage 1 of 768x512": (256, 384)}
TEXT_TOKENS, NUM_FRAMES, FPS = 1024, 121, 24
STG = Perturbation(frozenset({28}), frozenset({28}))
ISOLATED = Perturbation(isolate_modalities=True)


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


def milliseconds(run: Callable[[], object]) -> tuple[float, float]:
    """The median of a run, and the seconds of the first one."""
    started = time.perf_counter()
    run()
    torch.cuda.synchronize()
    first = time.perf_counter() - started
    run()
    taken = []
    for _ in range(5):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        taken.append(begin.elapsed_time(end))
    return statistics.median(taken), first


@torch.inference_mode()
def main() -> None:
    device = torch.device("cuda", 0)
    transformer = random_transformer(device)
    print(torch.cuda.get_device_name(device), torch.__version__)
    rows = []
    for form in ("plain", "compiled"):
        if form == "compiled":
            compile_blocks(transformer, lambda note: print(note, flush=True))
        for name, (height, width) in SIZES.items():
            step = guided_passes(height, width, device)
            forward, first = milliseconds(lambda step=step: transformer.forward_passes(step[:1]))
            rows.append((form, name, "forward", forward, forward, first))
            for batch, limit in (("one by one", 0), ("as a batch", sys.maxsize)):
                transformer.batched_tokens = limit
                torch.cuda.reset_peak_memory_stats()
                taken, first = milliseconds(lambda step=step: transformer.forward_passes(step))
                rows.append((form, name, f"guided, {batch}", taken, forward, first))
                print(*rows[-1], f"peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB", flush=True)
    print(f"{'':9} {'':21} {'':19} {'ms':>8} {'/ 4 forwards':>12} {'first s':>8}")
    for form, name, what, taken, forward, first in rows:
        print(f"{form:9} {name:21} {what:19} {taken:8.0f} {taken / forward / 4:12.2f} {first:8.1f}")


if __name__ == "__main__":
    main()
