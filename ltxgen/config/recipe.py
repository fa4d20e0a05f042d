"""The recipe: the dataclasses behind the YAML, one for each top-level group."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Annotated, Any, Literal

from ltxgen.config.errors import MISSING, Problem, Refusal
from ltxgen.config.hardware import Hardware
from ltxgen.config.schema import (
    INVALID,
    Check,
    Kind,
    NonNegativeFloat,
    NonNegativeInt,
    Null,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
    UnitFloat,
    parse,
)

Sha256 = Annotated[
    str, Check("must be 64 hexadecimal digits", lambda text: re.fullmatch("[0-9a-f]{64}", text) is not None)
]


def _frame_count(value: int) -> bool:
    return value >= 1 and value % 8 == 1


Crf = Annotated[int, Check("must be between 0 (skip the H.264 round trip) and 51", lambda crf: 0 <= crf <= 51)]


@dataclass(frozen=True)
class ImageCondition:
    """A picture that the video shows at pixel frame `frame`; a negative one counts from the end, -1 is the last.

    `strength` of 1 keeps it as it is. A `crf` of null is the model's.
    """

    path: str
    frame: int = 0
    strength: UnitFloat = 1.0
    crf: Crf | None = None


@dataclass(frozen=True)
class ReferenceClip:
    """A video or picture that an IC-LoRA works from; `strength` of 1 keeps it as it is."""

    path: str
    strength: UnitFloat = 1.0


@dataclass(frozen=True)
class ReferenceMask:
    """A grey video or picture: how much each part of the references counts, black not at all."""

    path: str | None = None


@dataclass(frozen=True)
class GivenSound:
    """A sound to make a video for: of the file, `duration_seconds` (null: the video's) from `start_seconds` on."""

    path: str | None = None
    start_seconds: NonNegativeFloat = 0.0
    duration_seconds: PositiveFloat | None = None


@dataclass(frozen=True)
class GivenClip:
    """A clip to start from."""

    path: str | None = None


@dataclass(frozen=True)
class GivenInstructions:
    """A text file that tells Gemma how to write prompts."""

    path: str | None = None


Modality = Literal["video", "audio"]
Size = Annotated[PositiveInt, Null(0)]


GIVEN = ("instructions", "images", "references", "reference_mask", "audio", "source", "span", "regenerate")
"""What a request may start from: fields that are refused where no stage takes them, rather than ignored."""


@dataclass(frozen=True)
class Request:
    """What is asked for. Sizes in pixels, `fps` exact; a `negative_prompt` of null means the default one.
    `original_prompt` is what `prompt` was written from, where it was: no stage sees it.

    A size or rate of null, 0 here, is that of `source`; a plan has put it in place. `span` is the part of `source` in
    seconds that is made anew, start and end, and `regenerate` what of it.
    """

    prompt: str
    default_negative_prompt: str
    negative_prompt: str | None = None
    original_prompt: str | None = None
    instructions: GivenInstructions = GivenInstructions()
    seed: Annotated[int, Check("must be between 0 and 2^63 - 1", lambda seed: 0 <= seed < 2**63)] = 10
    height: Size = 1024
    width: Size = 1536
    num_frames: Size = 121
    fps: Annotated[PositiveFraction, Null(Fraction(0))] = Fraction(24)
    images: tuple[ImageCondition, ...] = ()
    references: tuple[ReferenceClip, ...] = ()
    reference_mask: ReferenceMask = ReferenceMask()
    audio: GivenSound = GivenSound()
    source: GivenClip = GivenClip()
    span: tuple[NonNegativeFloat, ...] | None = None
    regenerate: tuple[Modality, ...] = ()


@dataclass(frozen=True)
class Model:
    """Which model the recipe is written for; another generation's files are refused.

    `image_crf`: what pictures are encoded with before they condition it, since it was trained on compressed frames.
    """

    name: str
    generation: Literal["LTX-2.3", "LTX-2"]
    stg_blocks: tuple[NonNegativeInt, ...]
    image_crf: Crf = 33


@dataclass(frozen=True)
class ArtifactChoice:
    """Where one file may come from: a path, or `owner/repository[/file][@revision]` in order, newest first.

    With a `sha256` only that very file (or folder) will do, wherever it is; `file` is its name then.
    """

    path: str | None = None
    candidates: tuple[str, ...] = ()
    file: str | None = None
    sha256: Sha256 | None = None


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
    spatial_upscaler_x1_5: ArtifactChoice = ArtifactChoice()
    temporal_upscaler: ArtifactChoice = ArtifactChoice()
    text_encoder: ArtifactChoice = ArtifactChoice()
    ic_lora: ArtifactChoice = ArtifactChoice()
    loras: dict[str, ArtifactChoice] = field(default_factory=dict)


@dataclass(frozen=True)
class Runtime:
    """Where and how the numbers are computed; `threads` of null leaves torch's own choice.

    `kernels: auto` takes fused kernels for the transformer's blocks on an NVIDIA GPU in 16 bits; `compile: auto`
    compiles the blocks on a GPU where fused kernels don't run; `batch_passes: auto` runs the passes of a guided step as
    one batch where one alone would leave a GPU partly idle; `graphs: auto` records small steps as CUDA graphs.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    numerics: Literal["current", "launch"] = "current"
    noise: Literal["cpu", "device"] = "cpu"
    threads: PositiveInt | None = None
    kernels: Literal["auto", "plain", "fused"] = "auto"
    compile: Literal["auto", "blocks", "none"] = "auto"
    batch_passes: Literal["auto", "always", "never"] = "auto"
    graphs: Literal["auto", "always", "never"] = "auto"


@dataclass(frozen=True)
class Output:
    """What a run leaves in `dir`; `tensors` adds `tensors.safetensors` with every intermediate result, `previews` a
    small picture after every so many denoising steps, `log` the file `log.jsonl`, a line for each event as it happens,
    `tensorboard` a folder for TensorBoard.

    `objective` is the number in manifest.json that a sweeper compares which looks for the best run, such as optuna's.
    """

    dir: Annotated[str, Check("must name a folder; leave it out for outputs/NAME/TIME", bool)]
    tensors: bool = False
    previews: NonNegativeInt = 0
    log: bool = False
    tensorboard: bool = False
    objective: str = "seconds"


@dataclass(frozen=True)
class Cache:
    """Outputs of stages, stored by content: whether a run reads what is there and adds its own (`auto`: both).

    In `folder`, by default `stages` in ltxgen's cache folder; over `max_gib` the least recently used are dropped.
    """

    mode: Literal["auto", "read", "write", "off"] = "auto"
    max_gib: NonNegativeFloat = 20.0
    folder: str | None = None


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
    cache: Cache = Cache()
    stages: dict[str, Annotated[Any, Kind("stage")]] = field(default_factory=dict)


def parse_recipe(config: Mapping[str, Any]) -> Recipe:
    """Validate a composed config; `Refusal` with every problem at once."""
    problems: list[Problem] = []
    if isinstance(config.get("stages"), Mapping):
        config = {**config, "stages": _without_left_out(config["stages"])}
    recipe = parse(Recipe, config, "", problems)
    # Rules over sound values are checked also when something elsewhere is not sound, so that one message holds all.
    request = config.get("request")
    if isinstance(request, Mapping) and isinstance(request.get("num_frames"), int):
        problems += _frame_problems(request["num_frames"])
    stages = config.get("stages") or {}
    if not isinstance(stages, Mapping):
        raise Refusal(problems)
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


_FOR_OTHERS = ("upsample", "condition_images")
"""Kinds of stages that are of use only to a stage that reads them."""


def _without_left_out(stages: Mapping[str, Any]) -> Mapping[str, Any]:
    """The stages that are not null. What only served one that is left out is left out with it."""
    kept = {name: stage for name, stage in stages.items() if stage is not None}
    while len(kept) < len(stages):
        stages, mentioned = kept, set(_strings(list(kept.values())))
        unread = {name for name in kept if not any(text.startswith(f"{name}.") for text in mentioned)}
        served = {
            name for name, stage in kept.items() if isinstance(stage, Mapping) and stage.get("kind") in _FOR_OTHERS
        }
        kept = {name: stage for name, stage in kept.items() if name not in unread & served}
    return kept


def _strings(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, Mapping | list | tuple):
        for value in node.values() if isinstance(node, Mapping) else node:
            yield from _strings(value)


def _frame_problems(num_frames: int) -> list[Problem]:
    if num_frames < 1 or _frame_count(num_frames):
        return []  # below 1 the type's own check speaks
    below = (num_frames - 1) // 8 * 8 + 1
    return [
        Problem("request.num_frames", num_frames, f"must be 8k + 1; the nearest are {below} and {below + 8}"),
    ]
