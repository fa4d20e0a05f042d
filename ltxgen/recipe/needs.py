"""What forecasts of memory start from: the room of this machine, stages' needs, and sizes of components from shapes."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Mapping

import torch

from ltxgen.artifacts.artifact import Files, ResolvedArtifact
from ltxgen.artifacts.components import COMPONENTS, BuildOptions, artifact_of
from ltxgen.artifacts.load import component_bytes, component_shapes
from ltxgen.config.hardware import Hardware
from ltxgen.models.blocks import BLOCKS
from ltxgen.parallel.plan import ParallelPlan
from ltxgen.parallel.weights import sharded_size
from ltxgen.recipe.forecast import ComponentSize, Forecaster, Room, StageNeed
from ltxgen.runtime.memory import free_device_bytes, free_host_bytes
from ltxgen.stage.protocol import PartRequest, Stage


def room_on(device: torch.device, hardware: Hardware, num_processes: int) -> Room:
    """What this process, one of so many on its machine, can have of it; without a GPU, of the one that predictions are
    for."""
    free = free_device_bytes(device) if device.type == "cuda" else int(hardware.memory_gib * 2**30)
    return Room(free, free_host_bytes() // num_processes)


def forecaster_of(
    stages: Mapping[str, Stage],
    artifacts: Mapping[str, ResolvedArtifact],
    parallel: ParallelPlan,
    options: BuildOptions,
) -> Forecaster:
    """Predictions for stages of a plan that can run."""
    requests = {request.name: request for stage in stages.values() for request in stage.parts}
    files = Files.of(artifacts)
    num_shards = parallel.shape.num_ranks if parallel.sharded_weights else 1
    sized = BuildOptions(float8=options.float8)  # the other options change no size
    sizes = {
        name: _component_size(request, files, num_shards, sized)
        for name, request in requests.items()
        if name in COMPONENTS
    }
    needs = {
        name: StageNeed(
            stage.reads,
            stage.writes,
            [request.name for request in stage.parts if request.name in sizes],
            functools.cache(stage.activation_bytes),  # asked for at every position of every policy
            stage.makes_stream,
        )
        for name, stage in stages.items()
    }
    return Forecaster(needs, sizes)


def num_text_states(artifacts: Mapping[str, ResolvedArtifact]) -> int | None:
    """Hidden states of the text encoder, each of which the text projection takes; None where none is needed."""
    if "text_encoder" not in artifacts:
        return None
    config = artifacts["text_encoder"].config
    return config.get("text_config", config)["num_hidden_layers"] + 1


@functools.lru_cache(maxsize=256)
def _component_size(request: PartRequest, files: Files, num_shards: int, options: BuildOptions) -> ComponentSize:
    artifacts, name = files.artifacts, request.name
    options = dataclasses.replace(options, num_text_states=num_text_states(artifacts))
    artifact = artifacts[artifact_of(name)]
    sizes = component_bytes(COMPONENTS[name], artifact, options, request.dtype)
    prefix = f"{BLOCKS[name]}." if name in BLOCKS else None
    rest, blocks = 0, collections.Counter[str]()
    for key, size in sizes.items():
        if prefix is not None and key.startswith(prefix):
            blocks[key.removeprefix(prefix).partition(".")[0]] += size
        else:
            rest += size
    if blocks and num_shards > 1:  # beside its part, a rank holds the block it computes with and the next one
        shapes = component_shapes(COMPONENTS[name], artifact, options)
        held = sharded_size(name, shapes, request.dtype.itemsize, num_shards).held
        return ComponentSize(held + 2 * max(blocks.values()))
    return ComponentSize(rest, tuple(blocks.values()))
