"""What can be wrong with a denoise stage, by what it is about; an empty list for nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ltxgen.artifacts.lora import IC_LORA
from ltxgen.artifacts.safetensors_file import BadFile
from ltxgen.config.errors import MISSING, Problem
from ltxgen.diffusion.grids import VideoGrid
from ltxgen.models.transformer import TransformerConfig
from ltxgen.reuse.none import NoneConfig

if TYPE_CHECKING:
    from ltxgen.stage.denoise import Denoise


def rate_problems(stage: Denoise) -> list[Problem]:
    """Frames of which so many a second are no whole latents."""
    num_frames, step = stage.setting.request.num_frames, (VideoGrid.time_factor / stage.config.rate).numerator
    if not stage.has_video or (num_frames - 1) % step == 0:
        return []
    below = (num_frames - 1) // step * step + 1
    message = (
        f"must be {step}k + 1, since stage {stage.name} makes {stage.config.rate} of the frames; the nearest are "
        f"{below} and {below + step}"
    )
    return [Problem("request.num_frames", num_frames, message)]


def step_problems(stage: Denoise) -> list[Problem]:
    """Of what says how many steps there are."""
    where, config = f"stages.{stage.name}", stage.config
    if config.sigmas is not None and config.steps is None:
        return []
    if config.sigmas is not None or (stage.schedule.takes_steps and config.steps is None):
        return [Problem(f"{where}.steps", config.steps, f"set either it or {where}.sigmas, the other to null")]
    if not stage.schedule.takes_steps and config.steps is not None:
        message = (
            f"the schedule `{config.schedule.kind}` has its own steps; set it to null, or take one of any number "
            f"with schedule@{where}.schedule=ltx2"
        )
        return [Problem(f"{where}.steps", config.steps, message)]
    return []


def schedule_problems(stage: Denoise) -> list[Problem]:
    """Of the noise levels, for a request whose sizes fit."""
    if step_problems(stage):
        return []
    where, config = f"stages.{stage.name}", stage.config
    try:
        sigmas = stage.sigmas
    except ValueError as error:
        if config.sigmas is None:
            return [Problem(f"{where}.schedule", config.schedule.kind, str(error))]
        return [Problem(f"{where}.sigmas", list(config.sigmas), str(error))]
    try:
        evaluations = stage.sampler.evaluations(sigmas.tolist())
    except ValueError as error:
        return [Problem(f"{where}.sampler", config.sampler.kind, f"{error}; the sigmas are {sigmas.tolist()}")]
    if len(evaluations) >= len(sigmas) and not isinstance(config.reuse, NoneConfig):
        message = (
            f"the sampler `{config.sampler.kind}` takes the difference of two evaluations a step, which have to "
            f"be exact; use reuse@{where}.reuse=none, or a sampler that evaluates once a step"
        )
        return [Problem(f"{where}.reuse", config.reuse.kind, message)]
    return []


def reuse_problems(stage: Denoise) -> list[Problem]:
    """Of what the request's sizes don't change."""
    where, config = f"stages.{stage.name}", stage.config
    checkpoint, problems = stage.setting.artifacts.get("checkpoint"), []
    if config.reuse.decides and config.checkpoint_every is not None:
        message = (
            f"a stage can't go on from a checkpoint with the reuse `{config.reuse.kind}`, which depends on hidden "
            "states; set it to null, or take another reuse"
        )
        problems.append(Problem(f"{where}.checkpoint_every", config.checkpoint_every, message))
    if checkpoint is None:
        return problems
    try:
        num_blocks = TransformerConfig.from_metadata(checkpoint.config).num_layers
    except (BadFile, ValueError):
        return problems  # the checkpoint's own check says what is wrong with it
    return problems + config.reuse.problems(f"{where}.reuse", num_blocks)


def reference_problems(stage: Denoise, shapes: Mapping[str, Any]) -> list[Problem]:
    """An IC-LoRA and references go together."""
    if any(name not in shapes for name in stage.config.conditions):
        return []  # what keeps them from being known is said elsewhere
    where, strength = f"stages.{stage.name}.loras", stage.config.loras.get(IC_LORA, 0.0)
    has_references = any(more is not None and more.attention is not None for more in vars(stage.appended).values())
    if has_references and not strength:
        message = f"the references that this stage reads mean nothing without an IC-LoRA; set {where}.{IC_LORA}=1.0"
        return [Problem(f"{where}.{IC_LORA}", strength, message)]
    if strength and not has_references:
        message = (
            f"is missing: stage {stage.name} has an IC-LoRA, which works from references; give "
            f"request.references=[{{path: FILE}}], or take the LoRA out with {where}.{IC_LORA}=0"
        )
        return [Problem("request.references", MISSING, message)]
    return []


def guidance_problems(stage: Denoise, shapes: Mapping[str, Any]) -> list[Problem]:
    """Of prompts that were not encoded, and of a checkpoint that such guidance does not suit."""
    passes = [each for guidance in stage.guidance.every for each in guidance.passes(0)]
    where = f"stages.{stage.name}.guidance"
    problems = []
    known = shapes.get(stage.config.context, ())
    if known and any(each.context not in known for each in passes):
        message = "needs the negative prompt, which the prompt stage leaves out; set its `negative` to true"
        problems.append(Problem(where, MISSING, message))
    if known and stage.has_video and "video" not in known:
        message = "holds no prompt for video; set video: true in the stage that encodes it"
        problems.append(Problem(f"stages.{stage.name}.context", stage.config.context, message))
    checkpoint = stage.setting.artifacts.get("checkpoint")
    if checkpoint is None:
        return problems
    if checkpoint.is_distilled and stage.num_passes > 1:
        message = (
            f"{checkpoint.file} is distilled and runs without guidance, which would add grain; use the dev "
            "checkpoint, or guidance `none` in this stage"
        )
        problems.append(Problem(where, stage.config.guidance.kind, message))
    try:
        num_blocks = TransformerConfig.from_metadata(checkpoint.config).num_layers
    except (BadFile, ValueError):
        return problems  # the checkpoint's own check says what is wrong with it
    return problems + (stage.config.guidance.problems(where, num_blocks) if stage.num_passes > 1 else [])


def latent_problems(stage: Denoise, shapes: Mapping[str, Any]) -> list[Problem]:
    """Whether what comes in has the size of what comes out."""
    wanted = shapes[f"{stage.name}.video"]
    given = shapes.get(stage.config.video or "", wanted)
    if given == wanted:
        return []
    message = (
        f"holds {_by(given)} latents (frames x height x width), and at scale {stage.config.scale} this stage "
        f"works on {_by(wanted)}; match its scale and rate to the upscaler"
    )
    return [Problem(f"stages.{stage.name}.video", stage.config.video, message)]


def _by(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))
