"""Which components and files the stages of a recipe need, and where the files are looked for."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from ltxgen.artifacts.artifact import ArtifactSpec
from ltxgen.artifacts.catalog import SPECS, candidate
from ltxgen.artifacts.components import artifact_of
from ltxgen.config.recipe import ArtifactChoice, Recipe
from ltxgen.recipe.parts import KNOWN_LORAS, lora_artifact
from ltxgen.stage.protocol import Stage


def component_names(stages: Mapping[str, Stage]) -> tuple[str, ...]:
    """The components that `stages` load, in the order of first use."""
    return tuple(dict.fromkeys(request.name for stage in stages.values() for request in stage.parts))


def artifact_specs(recipe: Recipe, stages: Mapping[str, Stage]) -> tuple[ArtifactSpec, ...]:
    """The artifacts that `stages` need: those of their components, then those of their LoRAs."""
    loras = dict.fromkeys(name for stage in stages.values() for request in stage.parts for name, _ in request.loras)
    known = [name for name in loras if name in KNOWN_LORAS or name in recipe.artifacts.loras]
    components = dict.fromkeys(artifact_of(name) for name in component_names(stages))
    return tuple(_spec(recipe, name) for name in itertools.chain(components, map(lora_artifact, known)))


def _spec(recipe: Recipe, name: str) -> ArtifactSpec:
    owner, _, lora = name.partition(".")
    choice: ArtifactChoice = recipe.artifacts.loras[lora] if owner == "loras" else getattr(recipe.artifacts, name)
    published = SPECS[recipe.model.generation].get(name)
    return ArtifactSpec(
        name=name,
        candidates=tuple(_candidate(text) for text in choice.candidates),
        path=choice.path,
        source="files" if owner == "loras" else recipe.artifacts.source,
        generation=None if name == "text_encoder" else recipe.model.generation,
        licence_url=published.licence_url if published else None,
        gated=bool(published and published.gated),
        others=published.others if published else (),
        architecture=recipe.artifacts.architecture,
        file=choice.file,
        sha256=choice.sha256,
    )


def _candidate(text: str) -> Any:
    """`owner/repository[/file][@revision]` as the resolver wants it."""
    name, _, revision = text.partition("@")
    owner, repository, *file = name.split("/", 2)
    return candidate(f"{owner}/{repository}", file[0] if file else "", revision or None)
