"""Where a compiled forward of the 22B transformer spends its GPU time: kernels by kind and the longest by name.

    python tests/perf/profile_forward.py [VIDEO_TOKENS ...]

Needs one CUDA device with 60 GB. Random bf16 weights and inputs.
"""

from __future__ import annotations

import collections
import sys
import time

import torch
from cost_model import AUDIO_TOKENS, DEVICE, GRIDS, SETTINGS, inputs, median_ms, random_transformer
from torch.profiler import ProfilerActivity, profile

from ltxgen.attention.auto import AutoConfig
from ltxgen.attention.choice import Side, choose, role_specs
from ltxgen.attention.protocol import DeviceFacts
from ltxgen.models.transformer import TransformerConfig
from ltxgen.models.transformer.compilation import compile_blocks
from ltxgen.parallel.cost import TEXT_TOKENS

KINDS = {
    "matrix products": ("gemm", "nvjet", "cutlass", "xmma", "sm90_"),
    "attention": ("flash", "fmha", "cudnn", "attention", "sdpa"),
    "fused": ("triton", "stream_kernel", "heads_kernel", "gate_kernel", "gelu_kernel"),
}
SHOWN = 22


def main(sizes: list[int]) -> None:
    config = TransformerConfig.from_metadata({"transformer": SETTINGS})
    specs = role_specs(Side(128, max(GRIDS)), Side(64, AUDIO_TOKENS), TEXT_TOKENS)
    roles = choose(AutoConfig(), DeviceFacts.of(DEVICE), torch.bfloat16, specs).functions
    transformer = random_transformer(config, roles)
    compile_blocks(transformer)
    for tokens in sizes:
        video, audio = inputs(tokens, GRIDS[tokens], config)
        started = time.perf_counter()
        transformer(video, audio)
        torch.cuda.synchronize()
        print(f"\n{tokens} tokens: first forward {time.perf_counter() - started:.1f} s")
        milliseconds = median_ms(lambda video=video, audio=audio: transformer(video, audio))
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            transformer(video, audio)
            torch.cuda.synchronize()
        report(milliseconds, seen)


def report(milliseconds: float, seen: profile) -> None:
    kinds: dict[str, float] = collections.defaultdict(float)
    averages = sorted(seen.key_averages(), key=lambda each: -each.self_device_time_total)
    for each in averages:
        # Attention first: cuDNN's kernels are called sm90 as well.
        order = ("attention", "fused", "matrix products")
        name = each.key.lower()
        kind = next((kind for kind in order if any(part in name for part in KINDS[kind])), "other")
        kinds[kind] += each.self_device_time_total / 1000
    busy = sum(kinds.values())
    print(f"{milliseconds:.1f} ms, kernels {busy:.1f} ms: {', '.join(f'{k} {v:.1f}' for k, v in kinds.items())}")
    for each in averages[:SHOWN]:
        print(f"  {each.self_device_time_total / 1000:8.2f} ms {each.count:5d} x  {each.key[:150]}")


if __name__ == "__main__":
    with torch.inference_mode():
        main([int(word) for word in sys.argv[1:]] or [1536, 6144, 24576])
