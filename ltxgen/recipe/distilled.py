"""Whether the checkpoint has the weights that the recipe's schedules were made for."""

from __future__ import annotations

from ltxgen.artifacts.artifact import ResolvedArtifact
from ltxgen.config.errors import Problem
from ltxgen.config.recipe import Recipe
from ltxgen.schedule.distilled import DistilledConfig
from ltxgen.stage.denoise import DenoiseConfig


def undistilled(recipe: Recipe, checkpoint: ResolvedArtifact | None) -> tuple[list[Problem], list[str]]:
    """Problems and notes about a checkpoint that isn't distilled, told by its name, where stages take the steps of one.

    A file that the user set is run as asked.
    """
    stages = [name for name, stage in recipe.stages.items() if _is_for_distilled(stage)]
    if checkpoint is None or checkpoint.is_synthetic or checkpoint.is_distilled or not stages:
        return [], []
    message = f"is no distilled checkpoint by its name, and {' and '.join(stages)} take the steps of one"
    if recipe.artifacts.checkpoint.path is not None:
        return [], [f"{checkpoint.config_path} = {checkpoint.path} {message}; it runs as asked"]
    where = f"stages.{stages[0]}"
    fix = (
        f"name distilled files in artifacts.checkpoint.candidates, or take "
        f"schedule@{where}.schedule=ltx2 with {where}.steps=30 and a guidance"
    )
    return [Problem("artifacts.checkpoint", checkpoint.file, f"{message}; {fix}")], []


def _is_for_distilled(stage: object) -> bool:
    """The distilled LoRA makes any checkpoint one."""
    if not isinstance(stage, DenoiseConfig) or stage.loras.get("distilled"):
        return False
    return stage.sigmas is None and isinstance(stage.schedule, DistilledConfig)
