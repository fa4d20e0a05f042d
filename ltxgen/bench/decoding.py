"""The decoders' cases: picture and sound from random latents, by the recipe's own stages."""

from __future__ import annotations

import collections
import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ltxgen.artifacts.components import COMPONENTS, artifact_of
from ltxgen.artifacts.load import build_on_meta
from ltxgen.bench import peers
from ltxgen.bench.ceilings import Ceilings
from ltxgen.bench.conditions import Conditions
from ltxgen.bench.options import DECODE, VOCODER
from ltxgen.bench.results import Entry, PeerFigure
from ltxgen.bench.timing import alternate
from ltxgen.bench.whole import size_of
from ltxgen.diffusion.noise import NoiseSource
from ltxgen.models.video_vae import decoder_for, fit_tiling, list_tiles
from ltxgen.recipe.plan import Plan
from ltxgen.recipe.run import parts_of
from ltxgen.stage.decode_audio import DecodeAudio
from ltxgen.stage.decode_video import DecodeVideo
from ltxgen.stage.denoise import Denoise
from ltxgen.stage.protocol import RunContext, Stream

SMALL_MEMORY_BYTES = 8 * 10**9
"""What a card of 8 GB has, for weights and activations together."""

STAGES: dict[str, type[DecodeVideo] | type[DecodeAudio]] = {DECODE: DecodeVideo, VOCODER: DecodeAudio}


def time_decoding(case: str, plan: Plan, conditions: Conditions) -> Iterator[Entry]:
    """Latents to uint8 frames on the device, tiled as the stage says; or to a waveform, by way of its spectrogram.

    Frames also in one piece, and in tiles for a card of 8 GB, where that is tiled otherwise. The peer of the video
    decoder is diffusers' in one piece.
    """
    for stage in plan.stages.values():
        if not isinstance(stage, STAGES[case]):
            continue
        shape = latent_shape(stage, plan)
        source = parts_of(plan, conditions.log)
        parts = {request.name: source.build(request) for request in stage.parts}
        latents = NoiseSource(plan.recipe.request.seed, device=plan.device, dtype=plan.dtype).draw(shape)
        ways = {case: stage, **(_other_tilings(stage, latents, parts) if isinstance(stage, DecodeVideo) else {})}
        sides: dict[str, Callable[[], object]] = {
            name: functools.partial(_decode, way, latents, parts, conditions.context) for name, way in ways.items()
        }
        difference = None
        theirs = peers.diffusers_decode(parts["video_decoder"]) if conditions.with_peer and case == DECODE else None
        if theirs is not None:
            difference = peers.relative_l2([parts["video_decoder"](latents)], [theirs(latents)])
            sides[peers.EAGER] = functools.partial(theirs, latents)
        timings = alternate(sides, plan.device, conditions.log)
        operations = count_operations(stage, shape, plan)
        for name, way in ways.items():
            yield Entry.of(
                name,
                size_of(plan),
                timings[name],
                floor_ms=_milliseconds(operations, conditions.ceilings),
                peers={peer: PeerFigure.of(timings[peer], 1, difference) for peer in sides if peer not in ways},
                details={**way.describe(), "tflop": sum(count for count, _ in operations) / 1e12},
            )
        del parts, sides, theirs
        source.released([request.name for request in stage.parts])


def _other_tilings(stage: DecodeVideo, latents: Tensor, parts: Mapping[str, Any]) -> dict[str, DecodeVideo]:
    """The stage with other tiles, by case: those that differ from the recipe's and from each other."""
    decoder = parts["video_decoder"]
    _, cost = decoder_for(decoder, latents, stage.config.kernels)
    weights = sum(weight.nbytes for weight in decoder.parameters())
    tilings = {"decode_whole": None, "decode_8gb": fit_tiling(cost, latents.shape[2:], SMALL_MEMORY_BYTES - weights)}
    size, known, found = latents.shape[2:], [], {}
    if stage.tiling != "auto":
        known.append(list_tiles(size, stage.tiling))
    for case, tiling in tilings.items():
        if (tiles := list_tiles(size, tiling)) not in known:
            known.append(tiles)
            found[case] = copy.copy(stage)
            found[case].tiling = tiling
    return found


def _decode(stage: DecodeVideo | DecodeAudio, latents: Tensor, parts: Mapping[str, Any], context: RunContext) -> None:
    (made,) = stage.run({stage.reads[0]: latents}, parts, context).values()
    if isinstance(made, Stream):
        collections.deque(made, maxlen=0)


def latent_shape(stage: DecodeVideo | DecodeAudio, plan: Plan) -> tuple[int, ...]:
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
