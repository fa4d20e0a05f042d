"""Composition: Hydra's config tree, recipes found by name or path, overrides, and their mistakes told at once."""

from ltxgen.config.compose.application import hydra_app, refuse_bad_flags
from ltxgen.config.compose.composition import COMPOSITION_ERRORS, CompositionRefusal, compose_config
from ltxgen.config.compose.folders import data_folder, first_comment, groups, recipe_files, recipe_folders
from ltxgen.config.compose.overrides import (
    fixed_words,
    has_other_plugins,
    is_plain,
    is_sweep,
    jobs_of_sweep,
    open_overrides,
    written_word,
)
from ltxgen.config.compose.recipes import RecipesByPath, RecipeSource, name_recipe_paths, read_recipe, register_plugins

__all__ = [
    "COMPOSITION_ERRORS",
    "CompositionRefusal",
    "RecipeSource",
    "RecipesByPath",
    "compose_config",
    "data_folder",
    "first_comment",
    "fixed_words",
    "groups",
    "has_other_plugins",
    "hydra_app",
    "is_plain",
    "is_sweep",
    "jobs_of_sweep",
    "name_recipe_paths",
    "open_overrides",
    "read_recipe",
    "recipe_files",
    "recipe_folders",
    "refuse_bad_flags",
    "register_plugins",
    "written_word",
]
