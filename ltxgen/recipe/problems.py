"""What can be wrong with a recipe before its files are known: its inputs, sizes, LoRAs' names and output."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from ltxgen.config.errors import Problem, did_you_mean
from ltxgen.config.recipe import GIVEN, Recipe
from ltxgen.media.files import check_free_space, check_writable
from ltxgen.media.mp4 import estimated_bytes
from ltxgen.recipe.parts import KNOWN_LORAS
from ltxgen.recipe.tensorboard import lacking_tensorboard
from ltxgen.stage.protocol import Stage, request_fields


def unused_problems(recipe: Recipe) -> list[Problem]:
    """What the request gives to start from and no stage can see."""
    seen = {name for config in recipe.stages.values() for name in request_fields(config)}
    given = {name: getattr(recipe.request, name) for name in GIVEN if name not in seen}
    files = {f"{name}.path": value.path for name, value in given.items() if hasattr(value, "path")}
    lists = {name: value for name, value in given.items() if f"{name}.path" not in files}
    lists = {name: [getattr(each, "path", each) for each in value or ()] for name, value in lists.items()}
    message = "no stage of this recipe takes it; leave it out, or {fix}"
    fixes = {"instructions.path": "add enhance=gemma, which does"}
    otherwise = "choose a recipe that does (`ltxgen ls recipe`)"
    return [
        Problem(f"request.{name}", value, message.format(fix=fixes.get(name, otherwise)))
        for name, value in (files | lists).items()
        if value
    ]


def size_problems(recipe: Recipe, stages: Mapping[str, Stage]) -> list[Problem]:
    """Heights and widths that are no whole latents in some stage."""
    multiple = math.lcm(*(stage.size_multiple for stage in stages.values()))
    problems = []
    for name in ("height", "width"):
        value = getattr(recipe.request, name)
        if value % multiple:
            below = value // multiple * multiple
            nearest = f"the nearest are {below} and {below + multiple}" if below else f"the smallest is {multiple}"
            message = f"must be a multiple of {multiple} in this recipe; {nearest}"
            problems.append(Problem(f"request.{name}", value, message))
    return problems


def lora_name_problems(recipe: Recipe, stages: Mapping[str, Stage]) -> list[Problem]:
    """LoRAs of stages that no artifact is named for."""
    known = (*KNOWN_LORAS, *recipe.artifacts.loras)
    return [
        Problem(
            f"stages.{name}.loras.{lora}",
            strength,
            f"no such LoRA; name its file with artifacts.loras.{lora}.path=FILE{did_you_mean(lora, known)}",
        )
        for name, stage in stages.items()
        for request in stage.parts
        for lora, strength in request.loras
        if lora not in known
    ]


def output_problems(recipe: Recipe) -> list[Problem]:
    """A folder that can't be written or a disk that is full, and what following the run lacks."""
    folder = Path(recipe.output.dir).expanduser()
    wrong = check_writable(folder) or check_free_space(folder, output_bytes(recipe))
    problems = [Problem("output.dir", recipe.output.dir, wrong)] if wrong else []
    if recipe.output.tensorboard and (lacking := lacking_tensorboard()):
        problems.append(Problem("output.tensorboard", True, lacking))
    return problems


def output_bytes(recipe: Recipe) -> int:
    """About what the files of a run take."""
    return estimated_bytes(recipe.request.num_frames, recipe.request.height, recipe.request.width)
