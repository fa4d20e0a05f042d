"""The decoders' cases: picture and sound from random latents, by the recipe's own stages."""

from __future__ import annotations

import collections
from collections.abc import Iterator

import torch
from torch.utils.flop_counter import FlopCounterMode

from ltxgen.artifacts.components import COMPONENTS, artifact_of
from ltxgen.artifacts.load import build_on_meta
from ltxgen.bench.ceilings import Ceilings
from ltxgen.bench.options import DECODE, VOCODER
from ltxgen.bench.results import Entry
from ltxgen.bench.timing import Log, alternate
from ltxgen.bench.whole import size_of
from ltxgen.diffusion.noise import NoiseSource
from ltxgen.recipe.parts import ArtifactParts
from ltxgen.recipe.plan import Plan
from ltxgen.stage.decode_audio import DecodeAudio
from ltxgen.stage.decode_video import DecodeVideo
from ltxgen.stage.denoise import Denoise
from ltxgen.stage.protocol import RunContext, Stream

STAGES: dict[str, type[DecodeVideo] | type[DecodeAudio]] = {DECODE: DecodeVideo, VOCODER: DecodeAudio}


def time_decoding(case: str, plan: Plan, ceilings: Ceilings, context: RunContext, log: Log) -> Iterator[Entry]:
    """Latents to uint8 frames on the device, tiled as the stage says; or to a waveform, by way of its spectrogram."""
    for stage in plan.stages.values():
        if not isinstance(stage, STAGES[case]):
            continue
        shape = _latent_shape(stage, plan)
        parts = ArtifactParts(plan.artifacts, plan.options, plan.device)
        built = {request.name: parts.build(request) for request in stage.parts}
        noise = NoiseSource(plan.recipe.request.seed, device=plan.device, dtype=plan.dtype)
        state = {stage.reads[0]: noise.draw(shape)}

        def decode(stage=stage, state=state, built=built) -> None:
            (made,) = stage.run(state, built, context).values()
            if isinstance(made, Stream):
                collections.deque(made, maxlen=0)

        timing = alternate({case: decode}, plan.device, log)[case]
        operations = count_operations(stage, shape, plan)
        floor = _milliseconds(operations, ceilings)
        tflop = sum(count for count, _ in operations) / 1e12
        yield Entry.of(case, size_of(plan), timing, floor_ms=floor, details={**stage.describe(), "tflop": tflop})
        built.clear()
        parts.released([request.name for request in stage.parts])


def _latent_shape(stage: DecodeVideo | DecodeAudio, plan: Plan) -> tuple[int, ...]:
    """That of the latent which the stage reads, as the stage that writes it says."""
    name, _, modality = stage.reads[0].rpartition(".")
    source = plan.stages[name]
    assert isinstance(source, Denoise), f"{stage.reads[0]} comes from no denoising stage"
    if modality == "video":
        video = source.video_grid
        return (1, video.channels, video.frames, video.height, video.width)
    audio = source.audio_grid
    return (1, audio.channels, audio.frames, audio.mel_bins)


def count_operations(
    stage: DecodeVideo | DecodeAudio, shape: tuple[int, ...], plan: Plan
) -> list[tuple[int, torch.dtype]]:
    """Floating point operations of the convolutions of each of the stage's parts, in one piece, and their dtype.

    The parts work on each other's results, in order; here without memory.
    """
    counted = []
    tensor = torch.empty(shape, device="meta")
    for request in stage.parts:
        spec = COMPONENTS[request.name]
        module = build_on_meta(spec, plan.artifacts[artifact_of(request.name)], plan.options, {})
        with FlopCounterMode(display=False) as counter:
            tensor = module(tensor)
        counted.append((counter.get_total_flops(), request.dtype))
    return counted


def _milliseconds(operations: list[tuple[int, torch.dtype]], ceilings: Ceilings) -> float | None:
    rates = [ceilings.gemm.get(str(dtype).removeprefix("torch.")) for _, dtype in operations]
    if any(rate is None for rate in rates):
        return None
    return sum(1000 * count / rate for (count, _), rate in zip(operations, rates, strict=True) if rate)
