"""How the ranks of a run share it: the mesh that is asked for, what it should take, and what it leaves on each."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence

import torch

from ltxgen.artifacts.artifact import ResolvedArtifact
from ltxgen.artifacts.components import COMPONENTS, BuildOptions, artifact_of
from ltxgen.artifacts.hub import shown_size
from ltxgen.artifacts.load import component_shapes
from ltxgen.artifacts.safetensors_file import BadFile
from ltxgen.config.errors import Problem
from ltxgen.config.recipe import Recipe, Runtime
from ltxgen.models.blocks import BLOCKS
from ltxgen.models.transformer import TransformerConfig
from ltxgen.models.transformer.flops import linear_work
from ltxgen.models.transformer.graphs import GRAPHED_TOKENS, SHARED_GRAPHED_TOKENS
from ltxgen.models.transformer.passes import BATCHED_TOKENS
from ltxgen.parallel.cost import CostModel, Work
from ltxgen.parallel.plan import ParallelPlan
from ltxgen.parallel.weights import sharded_size
from ltxgen.stage.protocol import Stage


def batched_tokens(runtime: Runtime, *, sharded: bool) -> int | None:
    """Up to how many video tokens passes run as one batch; None is the rule for steps that are recorded."""
    recorded = runtime.graphs != "never" and not sharded
    auto = None if recorded else BATCHED_TOKENS  # the host launches a batch as fast as a pass
    return {"auto": auto, "always": sys.maxsize, "never": 0}[runtime.batch_passes]


def graphed_tokens(rule: str, *, shared: bool) -> int:
    """Of `runtime.graphs`: up to how many of a rank's own video tokens passes are recorded as CUDA graphs."""
    return {"auto": SHARED_GRAPHED_TOKENS if shared else GRAPHED_TOKENS, "always": sys.maxsize, "never": 0}[rule]


def cost_model(
    recipe: Recipe,
    model: TransformerConfig,
    work: Mapping[str, Work],
    device: torch.device,
    dtype: torch.dtype,
    float8: Mapping[str, tuple[int, int]],
) -> CostModel:
    """Predictions for this run on `recipe.hardware`, with the memory of this machine's GPU where that is less.

    `float8` are the layers that run in fp8.
    """
    hardware = recipe.hardware
    if device.type == "cuda":
        here = torch.cuda.get_device_properties(device).total_memory / 2**30
        hardware = dataclasses.replace(hardware, memory_gib=min(hardware.memory_gib, here))
    return CostModel(
        model,
        work,
        hardware,
        recipe.parallel.processes_per_machine,
        dtype.itemsize,
        batched_tokens=batched_tokens(recipe.runtime, sharded=False),
        float8=linear_work(float8),
        graphed_tokens=graphed_tokens(recipe.runtime.graphs, shared=True),
    )


def parallel_plan(
    recipe: Recipe, stages: Mapping[str, Stage], cost: CostModel | None
) -> tuple[ParallelPlan | None, list[Problem]]:
    """How the ranks share the work, and what is wrong with the mesh that was asked for."""
    num_ranks = recipe.parallel.num_processes or 1
    num_passes = max(stage.num_passes for stage in stages.values())
    num_heads = {} if cost is None else {"video": cost.config.video.num_heads, "audio": cost.config.audio.num_heads}
    problems = recipe.parallel.problems("parallel", num_ranks, num_passes, num_heads)
    if problems or cost is None:
        return None, problems
    return ParallelPlan(recipe.parallel.choose(num_ranks, cost), cost), []


def weight_lines(
    parallel: ParallelPlan | None,
    components: Sequence[str],
    artifacts: Mapping[str, ResolvedArtifact],
    dtype: torch.dtype,
) -> Iterator[str]:
    """What each rank holds of the components that are sharded."""
    if parallel is None or not parallel.sharded_weights:
        return
    for name in components:
        if name not in BLOCKS or artifact_of(name) not in artifacts:
            continue
        try:
            shapes = component_shapes(COMPONENTS[name], artifacts[artifact_of(name)], BuildOptions())
        except (BadFile, ValueError):
            continue  # the artifact's own check says what is wrong with it
        num_ranks = parallel.shape.num_ranks
        size = sharded_size(name, shapes, dtype.itemsize, num_ranks)
        yield (
            f"weights of the {name} sharded over {num_ranks} ranks: {shown_size(size.held)} of "
            f"{shown_size(size.whole)} on each, {shown_size(size.gathered)} received whenever it runs"
        )
