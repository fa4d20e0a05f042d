"""The plan: a recipe resolved against this machine, before any weight is read. Data, and what is wrong with it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ltxgen.artifacts.artifact import ArtifactSpec, Attempt, Files, ResolvedArtifact
from ltxgen.artifacts.check import CheckResult, check_artifacts
from ltxgen.artifacts.components import BuildOptions
from ltxgen.artifacts.resolver import Places, resolve_all
from ltxgen.artifacts.safetensors_file import BadFile
from ltxgen.attention.choice import AttentionPlan, Side, choose, role_specs
from ltxgen.attention.protocol import DeviceFacts
from ltxgen.config.errors import Problem, Refusal
from ltxgen.config.recipe import Recipe, Runtime
from ltxgen.diffusion.numerics import Numerics
from ltxgen.diffusion.pair import Pair
from ltxgen.models.transformer import TransformerConfig
from ltxgen.parallel.cost import TEXT_TOKENS, Work
from ltxgen.parallel.launch import gpu_problems, launch_problems
from ltxgen.parallel.plan import ParallelPlan
from ltxgen.recipe.distilled import undistilled
from ltxgen.recipe.executor import wiring_problems
from ltxgen.recipe.forecast import Room
from ltxgen.recipe.layout import batched_tokens, cost_model, graphed_tokens, parallel_plan, weight_lines
from ltxgen.recipe.needs import forecaster_of, num_text_states, room_on
from ltxgen.recipe.policy import MemoryPlan, choose_policy
from ltxgen.recipe.precision import float8_layers, precision_notes, precision_problems
from ltxgen.recipe.problems import lora_name_problems, output_problems, size_problems, unused_problems
from ltxgen.recipe.sizes import with_source_sizes
from ltxgen.recipe.specs import artifact_specs, component_names
from ltxgen.runtime.environment import resolve_compile, resolve_device, resolve_dtype, resolve_kernels
from ltxgen.stage.denoise import NOISE, Denoise, DenoiseConfig
from ltxgen.stage.enhance_prompt import EnhancePromptConfig
from ltxgen.stage.protocol import Setting, Stage, setting_for


@dataclass(frozen=True)
class Plan:
    """What would run. `tried` holds, for each artifact, what was looked at before the one that was taken, `attention`
    the backend of each role and why not another, `backends` its name and that of the one for calls with a mask,
    `weights` what of them each rank holds where they are sharded, `fused` and `compiles` whether the transformer's
    blocks run with fused kernels or compiled, `memory` which of them are on the device when.

    `problems` keep it from running anywhere, `here` from running on this machine.
    """

    recipe: Recipe
    device: torch.device
    dtype: torch.dtype
    numerics: Numerics
    options: BuildOptions
    stages: Mapping[str, Stage]
    artifacts: Mapping[str, ResolvedArtifact]
    specs: Sequence[ArtifactSpec]
    tried: Mapping[str, Sequence[Attempt]]
    problems: Sequence[Problem]
    notes: Sequence[str]
    attention: Sequence[str]
    parallel: ParallelPlan | None
    weights: Sequence[str]
    fused: bool
    compiles: bool
    memory: MemoryPlan | None
    here: Sequence[Problem]
    backends: Mapping[str, tuple[str, str]]

    @property
    def swaps(self) -> bool:
        """Whether components that wait for a later stage do so on the host."""
        return self.memory is not None and self.memory.forecast.policy == "swap"

    def require(self) -> Plan:
        """This plan if it can run here; Refusal with everything that is wrong with it if not."""
        if self.problems or self.here:
            raise Refusal([*self.problems, *self.here])
        return self


def make_plan(
    recipe: Recipe,
    log: Callable[[str], None] = lambda message: None,
    local_rank: int = 0,
    room: Room | None = None,
) -> Plan:
    """Resolve and check everything that can be known before weights load; problems stand in the plan.

    `local_rank` is the number of this process on its machine, which gets the GPU of that number. `room` is the memory
    that the run can have; None: what is free now.
    """
    recipe, problems = with_source_sizes(recipe)
    notes: list[str] = []
    device, dtype, fused, compiles = _computing(recipe.runtime, local_rank, problems, notes)
    numerics = Numerics.named(recipe.runtime.numerics)
    setting = Setting(recipe.request, numerics, device, dtype)
    stages = _built(recipe, setting)
    sizes = size_problems(recipe, stages)
    problems += [*unused_problems(recipe), *launch_problems(recipe.parallel), *sizes]
    problems += [*lora_name_problems(recipe, stages), *wiring_problems(stages, given=(NOISE,))]

    specs = artifact_specs(recipe, stages)
    places = Places(folders=recipe.artifacts.folders, download=recipe.artifacts.download)
    resolution = resolve_all(specs, places, log)
    artifacts = resolution.artifacts
    problems += resolution.problems
    setting = dataclasses.replace(setting, artifacts=artifacts)
    work = {} if sizes else _work(_built(recipe, setting))
    parallel, attention = _layout(recipe, stages, work, artifacts, device, dtype, problems)
    options = _build_options(recipe, numerics, artifacts, parallel, attention)
    checkpoint, sharded = artifacts.get("checkpoint"), parallel is not None and parallel.sharded_weights
    checked = _check(Files.of(artifacts), component_names(stages), options)
    unfit, told = undistilled(recipe, checkpoint)
    problems += [*precision_problems(options.float8, checkpoint, device, dtype, sharded), *unfit, *checked.problems]
    notes = [*checked.notes, *notes, *precision_notes(checkpoint, options, dtype), *told]

    recorded = _or_note(lambda: _graphed_tokens(recipe.runtime.graphs, device, parallel), 0, problems)
    setting = dataclasses.replace(setting, parallel=parallel, graphed_tokens=recorded)
    stages = _built(recipe, setting)
    problems += _inferred(stages)
    if not problems:
        notes += [note for stage in stages.values() if isinstance(stage, Denoise) for note in stage.notes]
    problems += output_problems(recipe)
    here = gpu_problems(recipe.parallel, torch.cuda.device_count() if device.type == "cuda" else None)
    memory = None
    if not problems and parallel is not None:
        memory, lacking = _memory_plan(recipe, stages, artifacts, parallel, options, device, room)
        here = [*here, *lacking]
    return Plan(
        recipe=recipe,
        device=device,
        dtype=dtype,
        numerics=numerics,
        options=options,
        stages=stages,
        artifacts=artifacts,
        specs=specs,
        tried={**{name: found.tried for name, found in artifacts.items()}, **resolution.tried},
        problems=tuple(dict.fromkeys(problems)),
        notes=tuple(notes),
        attention=tuple(attention.lines()),
        parallel=parallel,
        weights=tuple(weight_lines(parallel, component_names(stages), artifacts, dtype)),
        fused=fused,
        compiles=compiles,
        memory=memory,
        here=here,
        backends={choice.role: (choice.kind, choice.masked) for choice in attention.choices},
    )


def _computing(
    runtime: Runtime, local_rank: int, problems: list[Problem], notes: list[str]
) -> tuple[torch.device, torch.dtype, bool, bool]:
    """The device, the dtype, and whether the transformer's blocks run with fused kernels or compiled."""
    device = _or_note(lambda: resolve_device(runtime.device, local_rank), torch.device("cpu"), problems)
    dtype = _or_note(lambda: resolve_dtype(runtime.dtype, device), torch.float32, problems)
    fused = _or_note(lambda: resolve_kernels(runtime.kernels, runtime.compile, device, dtype), False, problems)
    compiles = _or_note(lambda: resolve_compile(runtime.compile, fused, device, notes.append), False, problems)
    return device, dtype, fused, compiles


def _layout(
    recipe: Recipe,
    stages: Mapping[str, Stage],
    work: Mapping[str, Work],
    artifacts: Mapping[str, ResolvedArtifact],
    device: torch.device,
    dtype: torch.dtype,
    problems: list[Problem],
) -> tuple[ParallelPlan | None, AttentionPlan]:
    """How the ranks share the work, and the attention backends for their shares."""
    checkpoint = artifacts.get("checkpoint")
    model = _transformer_config(checkpoint)
    float8 = float8_layers(recipe.precision.build(), checkpoint, component_names(stages))
    cost = None if model is None else cost_model(recipe, model, work, device, dtype, float8)
    parallel, wrong = parallel_plan(recipe, stages, cost)
    attention = _attention_plan(recipe, stages, work, model, parallel, device, dtype)
    problems += [*wrong, *attention.problems]
    return parallel, attention


def _build_options(
    recipe: Recipe,
    numerics: Numerics,
    artifacts: Mapping[str, ResolvedArtifact],
    parallel: ParallelPlan | None,
    attention: AttentionPlan,
) -> BuildOptions:
    checkpoint = artifacts.get("checkpoint")
    without_file = checkpoint is not None and checkpoint.is_synthetic
    return BuildOptions(
        cross_timestep=numerics.cross_timestep,
        attention=attention.functions if parallel is None else parallel.roles(attention.functions),
        # Of a file the projection's own weight says it.
        num_text_states=num_text_states(artifacts) if without_file else None,
        batched_tokens=batched_tokens(recipe.runtime, sharded=parallel is not None and parallel.sharded_weights),
        float8=recipe.precision.build(),
    )


@functools.lru_cache(maxsize=32)
def _check(files: Files, components: tuple[str, ...], options: BuildOptions) -> CheckResult:
    return check_artifacts(files.artifacts, components, options)


def _built(recipe: Recipe, setting: Setting) -> dict[str, Stage]:
    stages: dict[str, Stage] = {}
    for name, config in recipe.stages.items():
        stages[name] = config.build(name, setting_for(config, setting))
        if isinstance(config, DenoiseConfig):
            setting = dataclasses.replace(setting, denoised=(*setting.denoised, name))
        if isinstance(config, EnhancePromptConfig):
            setting = dataclasses.replace(setting, enhanced=f"{name}.prompt")
    return stages


def _inferred(stages: Mapping[str, Stage]) -> list[Problem]:
    """Tell every stage what is known of the values that it will read; what they see wrong."""
    shapes: dict[str, Any] = {}
    return [problem for stage in stages.values() for problem in stage.infer(shapes)]


def _work(stages: Mapping[str, Stage]) -> dict[str, Work]:
    _inferred(stages)  # what is wrong is said once, by the stages that know their ranks
    return {name: work for name, stage in stages.items() if (work := stage.work) is not None}


def _memory_plan(
    recipe: Recipe,
    stages: Mapping[str, Stage],
    artifacts: Mapping[str, ResolvedArtifact],
    parallel: ParallelPlan,
    options: BuildOptions,
    device: torch.device,
    room: Room | None,
) -> tuple[MemoryPlan | None, Sequence[Problem]]:
    """Which weights are on the device when, and what keeps that from fitting here."""
    room = room or room_on(device, recipe.hardware, recipe.parallel.processes_per_machine)
    forecaster = forecaster_of(stages, artifacts, parallel, options)
    limited = device.type == "cuda"
    return choose_policy(recipe.memory, forecaster, room, parallel.sharded_weights, limited=limited)


def _transformer_config(checkpoint: ResolvedArtifact | None) -> TransformerConfig | None:
    """The architecture, or None where the checkpoint's own check says what is wrong with it."""
    try:
        return None if checkpoint is None else TransformerConfig.from_metadata(checkpoint.config)
    except (BadFile, ValueError):
        return None


def _attention_plan(
    recipe: Recipe,
    stages: Mapping[str, Stage],
    work: Mapping[str, Work],
    model: TransformerConfig | None,
    parallel: ParallelPlan | None,
    device: torch.device,
    dtype: torch.dtype,
) -> AttentionPlan:
    """A backend for each role, for the longest stage; the ring needs ones that give log-sum-exps."""
    longest = max(
        (each.tokens for each in work.values()), key=lambda tokens: tokens.video or 0, default=Pair(None, None)
    )
    video, audio = (None, None) if model is None else (model.video.head_dim, model.audio.head_dim)
    passes = [stage.num_passes for stage in stages.values() if stage.num_passes]
    needs_lse = () if parallel is None else parallel.roles_with_lse(passes)
    # A role that has a mask in some stages only has a second backend for those.
    masked = frozenset.intersection(*(frozenset(each.masked) for each in work.values())) if work else ()
    sides = Side(video, longest.video), Side(audio, longest.audio)
    specs = role_specs(*sides, TEXT_TOKENS, masked=masked, needs_lse=needs_lse)
    return choose(recipe.attention, DeviceFacts.of(device), dtype, specs)


def _or_note(resolve: Callable[[], Any], otherwise: Any, problems: list[Problem]) -> Any:
    try:
        return resolve()
    except Refusal as refusal:
        problems += refusal.problems
        return otherwise


def _graphed_tokens(rule: str, device: torch.device, parallel: ParallelPlan | None) -> int:
    """Up to how many of a rank's own video tokens passes are recorded as CUDA graphs."""
    if device.type == "cuda":
        return graphed_tokens(rule, shared=parallel is not None and parallel.shape.num_ranks > 1)
    if rule == "always":
        raise Refusal([Problem("runtime.graphs", rule, "CUDA graphs need a GPU; use runtime.graphs=auto or never")])
    return 0
