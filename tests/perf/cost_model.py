"""The cost model's arithmetic against forwards of the 22B transformer on one GPU: random bf16 weights, medians of 5.

    python tests/perf/cost_model.py [h200|h100]

For each number of video tokens: measured and predicted milliseconds of one pass. Prints JSON last.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import yaml

from ltxgen.attention.auto import AutoConfig
from ltxgen.attention.choice import Side, choose, role_specs
from ltxgen.attention.protocol import DeviceFacts
from ltxgen.config.hardware import Hardware
from ltxgen.diffusion.pair import Pair
from ltxgen.models.transformer import ModalityInput, Transformer, TransformerConfig
from ltxgen.parallel.cost import TEXT_TOKENS, CostModel

SETTINGS = {
    "cross_attention_adaln": True,
    "apply_gated_attention": True,
    "caption_proj_before_connector": True,
    "av_ca_timestep_scale_multiplier": 1000.0,
    "frequencies_precision": "float64",
}
AUDIO_TOKENS = 126
GRIDS = {1536: (16, 8, 12), 3072: (16, 12, 16), 6144: (16, 16, 24), 12288: (16, 24, 32), 24576: (16, 32, 48)}
WARM_UPS, REPEATS = 2, 5
DEVICE = torch.device("cuda")


def main(hardware_name: str) -> None:
    config = TransformerConfig.from_metadata({"transformer": SETTINGS})
    folder = Path(__file__).parents[2] / "conf/hardware"
    hardware = Hardware(**yaml.safe_load((folder / f"{hardware_name}.yaml").read_text()))
    cost = CostModel(config, {}, hardware)
    specs = role_specs(Side(128, max(GRIDS)), Side(64, AUDIO_TOKENS), TEXT_TOKENS)
    roles = choose(AutoConfig(), DeviceFacts.of(DEVICE), torch.bfloat16, specs).functions
    transformer = random_transformer(config, roles)
    found = {}
    for tokens, grid in GRIDS.items():
        video, audio = inputs(tokens, grid, config)
        milliseconds = median_ms(lambda video=video, audio=audio: transformer(video, audio))
        predicted = 1000 * cost.forward_seconds(Pair(tokens, AUDIO_TOKENS))
        found[tokens] = {"measured_ms": milliseconds, "predicted_ms": predicted}
        print(f"{tokens:6d} tokens: {milliseconds:8.1f} ms, predicted {predicted:8.1f}", flush=True)
    print(json.dumps({"device": torch.cuda.get_device_name(), "forward": found}))


def random_transformer(config: TransformerConfig, roles) -> Transformer:
    with torch.device("meta"):
        transformer = Transformer(config, attention=roles)
    transformer = transformer.to(torch.bfloat16).to_empty(device=DEVICE).eval().requires_grad_(False)
    generator = torch.Generator(DEVICE).manual_seed(0)
    for parameter in transformer.parameters():
        parameter.normal_(0.0, 0.02, generator=generator)
    return transformer


def inputs(tokens: int, grid: tuple[int, int, int], config: TransformerConfig) -> tuple[ModalityInput, ModalityInput]:
    generator = torch.Generator(DEVICE).manual_seed(tokens)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=DEVICE, dtype=torch.bfloat16)

    axes = [torch.arange(size, device=DEVICE, dtype=torch.float32) for size in grid]
    starts = torch.stack([axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")])[None]
    seconds = torch.arange(AUDIO_TOKENS, device=DEVICE, dtype=torch.float32)[None, None] / 25
    level = torch.full((1, 1), 0.7, device=DEVICE)
    video = ModalityInput(
        normal(1, tokens, config.video.in_channels),
        level,
        level[0],
        torch.stack([starts, starts + 1], dim=-1),
        normal(1, TEXT_TOKENS, config.video.context_dim),
    )
    audio = ModalityInput(
        normal(1, AUDIO_TOKENS, config.audio.in_channels),
        level,
        level[0],
        torch.stack([seconds, seconds + 0.04], dim=-1),
        normal(1, TEXT_TOKENS, config.audio.context_dim),
    )
    return video, audio


def median_ms(run) -> float:
    times = []
    for repeat in range(WARM_UPS + REPEATS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        if repeat >= WARM_UPS:
            times.append(start.elapsed_time(end))
    return sorted(times)[len(times) // 2]


if __name__ == "__main__":
    with torch.inference_mode():
        main(*(sys.argv[1:] or ["h200"]))
