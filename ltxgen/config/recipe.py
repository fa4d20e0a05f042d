"""The recipe: the dataclasses behind the YAML, one for each top-level group."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Annotated, Any, Literal

from ltxgen.config.errors import MISSING, Problem, Refusal
from ltxgen.config.hardware import Hardware
from ltxgen.config.schema import (
    INVALID,
    Check,
    Kind,
    NonNegativeInt,
    PositiveFraction,
    PositiveInt,
    UnitFloat,
    parse,
)


def _frame_count(value: int) -> bool:
    return value >= 1 and value % 8 == 1


@dataclass(frozen=True)
class ImageCondition:
    """A picture that the video shows at pixel frame `frame`."""

    path: str
    frame: NonNegativeInt = 0
    strength: UnitFloat = 1.0
    crf: Annotated[int, Check("must be between 0 (skip the H.264 round trip) and 51", lambda crf: 0 <= crf <= 51)] = 33


@dataclass(frozen=True)
class Request:
    """What is asked for. Sizes in pixels, `fps` exact; a `negative_prompt` of null means the default one."""

    prompt: str
    default_negative_prompt: str
    negative_prompt: str | None = None
    seed: Annotated[int, Check("must be between 0 and 2^63 - 1", lambda seed: 0 <= seed < 2**63)] = 10
    height: PositiveInt = 1024
    width: PositiveInt = 1536
    num_frames: PositiveInt = 121
    fps: PositiveFraction = Fraction(24)
    images: tuple[ImageCondition, ...] = ()


@dataclass(frozen=True)
class Model:
    """Which model the recipe is written for; another generation's files are refused."""

    name: str
    generation: Literal["LTX-2.3", "LTX-2"]
    stg_blocks: tuple[NonNegativeInt, ...]


@dataclass(frozen=True)
class ArtifactChoice:
    """Where one file may come from: a path, or `owner/repository[/file][@revision]` in order, newest first."""

    path: str | None = None
    candidates: tuple[str, ...] = ()


@dataclass(frozen=True)
class Artifacts:
    """The files of the model. `source` is `files`, `embedded` (the tiny model) or `synthetic` (random, no files)."""

    source: Literal["files", "embedded", "synthetic"] = "files"
    architecture: str = "ltx23_22b"
    folders: tuple[str, ...] = ()
    download: bool = False
    checkpoint: ArtifactChoice = ArtifactChoice()
    distilled_lora: ArtifactChoice = ArtifactChoice()
    spatial_upscaler: ArtifactChoice = ArtifactChoice()
    temporal_upscaler: ArtifactChoice = ArtifactChoice()
    text_encoder: ArtifactChoice = ArtifactChoice()
    loras: dict[str, ArtifactChoice] = field(default_factory=dict)


@dataclass(frozen=True)
class Runtime:
    """Where and how the numbers are computed; `threads` of null leaves torch's own choice.

    `compile: auto` compiles the transformer's blocks on a GPU; `batch_passes: auto` runs the passes of a guided step as
    one batch where one alone would leave a GPU partly idle; `graphs: auto` records small steps as CUDA graphs.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    numerics: Literal["current", "launch"] = "current"
    noise: Literal["cpu", "device"] = "cpu"
    threads: PositiveInt | None = None
    compile: Literal["auto", "blocks", "none"] = "auto"
    batch_passes: Literal["auto", "always", "never"] = "auto"
    graphs: Literal["auto", "always", "never"] = "never"


@dataclass(frozen=True)
class Output:
    """What a run leaves in `dir`; `tensors` adds `tensors.safetensors` with every intermediate result."""

    dir: str
    tensors: bool = False


@dataclass(frozen=True)
class Memory:
    """Which of the model's weights are on the device when.

    `resident`: all, once loaded; `last_use`: of components that this or a later stage needs; `swap`: of this stage's,
    others wait on the host; `stream`: as `last_use`, and blocks that don't fit only as they run, from the host or from
    disk (`stream_from`; `auto` takes the disk where the host lacks memory); `auto`: the fastest that fits.

    So many `blocks_on_device` of the transformer, and of the text encoder, don't stream; null: as many as fit. With
    `load_ahead`, the next stage's components are loaded while a stage runs, where both fit.
    """

    policy: Literal["auto", "resident", "last_use", "swap", "stream"] = "auto"
    stream_from: Literal["auto", "host", "disk"] = "auto"
    blocks_on_device: NonNegativeInt | None = None
    load_ahead: bool = True


@dataclass(frozen=True)
class Recipe:
    """A whole run, validated. `stages` is ordered: it is the order of execution."""

    name: str
    request: Request
    model: Model
    artifacts: Artifacts
    runtime: Runtime
    output: Output
    memory: Memory
    attention: Annotated[Any, Kind("attention")]
    precision: Annotated[Any, Kind("precision")]
    parallel: Annotated[Any, Kind("parallel")]
    hardware: Hardware
    stages: dict[str, Annotated[Any, Kind("stage")]] = field(default_factory=dict)


def parse_recipe(config: Mapping[str, Any]) -> Recipe:
    """Validate a composed config; `Refusal` with every problem at once."""
    problems: list[Problem] = []
    recipe = parse(Recipe, config, "", problems)
    # Rules over sound values are checked also when something elsewhere is not sound, so that one message holds all.
    request = config.get("request")
    if isinstance(request, Mapping) and isinstance(request.get("num_frames"), int):
        problems += _frame_problems(request["num_frames"])
    stages = config.get("stages") or {}
    if not stages:
        problems.append(
            Problem("stages", MISSING, "a recipe has stages; choose one with +recipe=NAME (`ltxgen ls recipe`)")
        )
    problems += [
        Problem(f"stages.{name}", MISSING, "a stage name is letters, digits and underscores, starting with a letter")
        for name in stages
        if not re.fullmatch(r"[A-Za-z]\w*", str(name))
    ]
    if problems or recipe is INVALID:
        raise Refusal(problems)
    assert isinstance(recipe, Recipe)
    return recipe


def _frame_problems(num_frames: int) -> list[Problem]:
    if num_frames < 1 or _frame_count(num_frames):
        return []  # below 1 the type's own check speaks
    below = (num_frames - 1) // 8 * 8 + 1
    return [
        Problem("request.num_frames", num_frames, f"must be 8k + 1; the nearest are {below} and {below + 8}"),
    ]
