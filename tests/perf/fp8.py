"""A compiled forward of the 22B transformer in bf16 and with fp8 linears, in one process: time, kernels, difference.

    python tests/perf/fp8.py [VIDEO_TOKENS ...]

Needs one CUDA device with fp8 units and 60 GB. Random bf16 weights and inputs; the layers are those of
conf/precision/fp8.yaml. Prints JSON last.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
import yaml
from cost_model import AUDIO_TOKENS, DEVICE, GRIDS, SETTINGS, inputs, median_ms, random_transformer
from profile_forward import report
from torch.profiler import ProfilerActivity, profile

from ltxgen.artifacts.lora import linear_weights
from ltxgen.attention.auto import AutoConfig
from ltxgen.attention.choice import Side, choose, role_specs
from ltxgen.attention.protocol import DeviceFacts
from ltxgen.models.transformer import Transformer, TransformerConfig, Velocities
from ltxgen.models.transformer.compilation import compile_blocks
from ltxgen.models.transformer.float8 import Float8Layers, use_float8
from ltxgen.parallel.cost import TEXT_TOKENS

CHOICE = Path(__file__).parents[2] / "conf/precision/fp8.yaml"


def main(sizes: list[int]) -> None:
    config = TransformerConfig.from_metadata({"transformer": SETTINGS})
    specs = role_specs(Side(128, max(GRIDS)), Side(64, AUDIO_TOKENS), TEXT_TOKENS)
    roles = choose(AutoConfig(), DeviceFacts.of(DEVICE), torch.bfloat16, specs).functions
    transformer = random_transformer(config, roles)
    compile_blocks(transformer)
    found: dict[int, dict[str, float]] = {tokens: {} for tokens in sizes}
    wanted = {tokens: measured(transformer, tokens, "bf16", found[tokens]) for tokens in sizes}

    layers = Float8Layers(tuple(yaml.safe_load(CHOICE.read_text())["skip"])).among(linear_weights(transformer).items())
    use_float8(transformer, layers)
    for tokens in sizes:
        velocities = measured(transformer, tokens, "fp8", found[tokens])
        for modality, one, other in zip(("video", "audio"), velocities, wanted[tokens], strict=True):
            assert one is not None
            assert other is not None
            found[tokens][f"relative_l2_{modality}"] = relative_l2(one, other)

    print(f"\n{len(layers)} layers in fp8")
    for tokens, figures in found.items():
        print(
            f"{tokens:6d} tokens: bf16 {figures['bf16']:7.1f} ms, fp8 {figures['fp8']:7.1f} ms "
            f"({figures['fp8'] / figures['bf16']:.3f}), relative L2 of velocities: video "
            f"{figures['relative_l2_video']:.2e}, audio {figures['relative_l2_audio']:.2e}"
        )
    print(json.dumps({"device": torch.cuda.get_device_name(), "forward": found}))


def measured(transformer: Transformer, tokens: int, name: str, figures: dict[str, float]) -> Velocities:
    """The velocities; the time goes into `figures`, and where it went is printed."""
    video, audio = inputs(tokens, GRIDS[tokens], transformer.config)
    started = time.perf_counter()
    velocities = transformer(video, audio)
    torch.cuda.synchronize()
    print(f"\n{name}, {tokens} tokens: first forward {time.perf_counter() - started:.1f} s", flush=True)
    figures[name] = median_ms(lambda: transformer(video, audio))
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        transformer(video, audio)
        torch.cuda.synchronize()
    report(figures[name], seen)
    return velocities


def relative_l2(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one.double() - other.double()).norm() / other.double().norm()).item()


if __name__ == "__main__":
    with torch.inference_mode():
        main([int(word) for word in sys.argv[1:]] or [6144, 24576])
