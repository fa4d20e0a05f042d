"""What `precision` means for a checkpoint on a machine: the layers in fp8, and what is wrong with asking for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch

from ltxgen.artifacts.artifact import ResolvedArtifact
from ltxgen.artifacts.components import COMPONENTS, TRANSFORMERS, BuildOptions
from ltxgen.artifacts.float8 import SCALE, WEIGHT, Float8Source
from ltxgen.artifacts.load import component_shapes, open_source
from ltxgen.artifacts.lora import linear_shapes
from ltxgen.artifacts.safetensors_file import BadFile
from ltxgen.config.errors import Problem, did_you_mean
from ltxgen.models.transformer.float8 import Float8Layers, candidates

FLOAT8_SINCE = (8, 9)  # the compute capability that has fp8 units, Ada's


def precision_problems(
    chosen: Float8Layers | None,
    checkpoint: ResolvedArtifact | None,
    device: torch.device,
    dtype: torch.dtype,
    sharded: bool,
) -> list[Problem]:
    """What keeps the chosen layers from running in fp8 here. Without a GPU they run, emulated."""
    if chosen is None:
        return []
    problems = []
    if device.type == "cuda" and (why := _lacking(device)):
        problems.append(Problem("precision.kind", "fp8", f"{why}; use precision=none"))
    if device.type == "cuda" and dtype != torch.bfloat16:
        message = "what surrounds fp8 layers on a GPU must be bfloat16; set it, or use precision=none"
        problems.append(Problem("runtime.dtype", str(dtype).removeprefix("torch."), message))
    if sharded:
        message = (
            "weights that are sharded over ranks can't be in fp8; use precision=none, or whole weights on each rank"
        )
        problems.append(Problem("precision.kind", "fp8", message))
    if checkpoint is not None:
        problems += _skip_problems(chosen, checkpoint)
    return problems


def _lacking(device: torch.device) -> str | None:
    if torch.version.hip is not None:
        return "fp8 layers are for NVIDIA GPUs"
    capability = torch.cuda.get_device_capability(device)
    if capability >= FLOAT8_SINCE:
        return None
    has, wanted = (".".join(map(str, each)) for each in (capability, FLOAT8_SINCE))
    return f"fp8 needs compute capability {wanted}, and the {torch.cuda.get_device_name(device)} has {has}"


def _skip_problems(chosen: Float8Layers, checkpoint: ResolvedArtifact) -> list[Problem]:
    """Patterns that match nothing, which leave in fp8 what was to be spared."""
    try:
        shapes = component_shapes(COMPONENTS["transformer"], checkpoint, BuildOptions())
    except (BadFile, ValueError):
        return []  # the checkpoint's own check says what is wrong with it
    names = candidates(linear_shapes(shapes).items())
    return [
        Problem(
            f"precision.skip[{index}]", pattern, f"matches no layer that could run in fp8{did_you_mean(pattern, names)}"
        )
        for index, pattern in enumerate(chosen.skip)
        if not any(fnmatchcase(name, pattern) for name in names)
    ]


def float8_layers(
    chosen: Float8Layers | None, checkpoint: ResolvedArtifact | None, components: Sequence[str]
) -> dict[str, tuple[int, int]]:
    """The layers that run in fp8 of the transformer among `components`, with shapes (outputs, inputs)."""
    name = next((each for each in TRANSFORMERS if each in components), None)
    if chosen is None or checkpoint is None or name is None:
        return {}
    spec = COMPONENTS[name]
    try:
        with open_source(checkpoint, spec, BuildOptions(float8=chosen)) as source:
            keys = spec.file_keys(source.shapes)
            names = (key.removesuffix(SCALE) for key in keys if key.endswith(SCALE))
            shapes = {name: source.shapes[keys[name + WEIGHT]] for name in names}
            return {name: (shape[0], shape[1]) for name, shape in shapes.items()}
    except (BadFile, ValueError):
        return {}  # the checkpoint's own check says what is wrong with it


def precision_notes(checkpoint: ResolvedArtifact | None, options: BuildOptions, dtype: torch.dtype) -> list[str]:
    """How many of the transformer's linear layers run in fp8, and what of a checkpoint in fp8 doesn't."""
    if checkpoint is None:
        return []
    try:
        with open_source(checkpoint, COMPONENTS["transformer"], options) as source:
            assert isinstance(source, Float8Source)
            layers, stored = source.layers, source.stored
            weights = {
                key.removesuffix(WEIGHT): math.prod(source.shapes[key])
                for key in COMPONENTS["transformer"].file_keys(source.shapes).values()
                if key.endswith(WEIGHT) and len(source.shapes[key]) == 2
            }
    except (BadFile, ValueError):
        return []
    notes = []
    if layers:
        share = sum(weights[name] for name in layers) / sum(weights.values())
        origin = ", as the checkpoint stores them" if stored else ""
        notes.append(
            f"precision fp8, an approximation: {len(layers)} of {len(weights)} linear layers of the transformer, "
            f"{share:.0%} of their weights, run in fp8{origin}"
        )
    if unused := stored - layers:
        notes.append(
            f"the checkpoint stores {len(unused)} linear layers in fp8 that run in {str(dtype).removeprefix('torch.')}"
            + ("" if layers else "; precision=fp8 runs them as they are stored")
        )
    return notes
