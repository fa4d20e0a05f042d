"""The request's sizes where they are those of its source clip."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

from ltxgen.config.errors import MISSING, Problem
from ltxgen.config.recipe import Recipe, Request
from ltxgen.media.clip import ClipFacts, clip_facts
from ltxgen.media.sound import BadMedia

# Sizes that fit every recipe: they stand in for unknown ones, so that the rest of a plan can still be checked.
_PLACEHOLDER = ClipFacts(width=64, height=64, num_frames=9, fps=Fraction(24), has_sound=True)


def with_source_sizes(recipe: Recipe) -> tuple[Recipe, list[Problem]]:
    """`recipe` with every size of null taken from its source clip, and why that can't be done."""
    request = recipe.request
    missing = [name for name in ("width", "height", "num_frames", "fps") if not getattr(request, name)]
    if not missing:
        return recipe, []
    facts, problems = _facts(request, missing)
    sizes = {name: getattr(facts, name) for name in missing}
    return dataclasses.replace(recipe, request=dataclasses.replace(request, **sizes)), problems


def _facts(request: Request, missing: list[str]) -> tuple[ClipFacts, list[Problem]]:
    path = request.source.path
    if path is None:
        message = "is missing; name the clip, or give " + ", ".join(f"request.{name}" for name in missing)
        return _PLACEHOLDER, [Problem("request.source.path", MISSING, message)]
    try:
        facts = clip_facts(path)
    except BadMedia as error:
        return _PLACEHOLDER, [Problem("request.source.path", path, str(error))]
    if "num_frames" not in missing or facts.num_frames % 8 == 1:
        return facts, []
    first = (facts.num_frames - 1) // 8 * 8 + 1
    what = (
        f"stands for the {facts.num_frames} frames of '{path}', and must be 8k + 1; request.num_frames={first} takes "
        f"the first {first}"
    )
    return dataclasses.replace(facts, num_frames=first), [Problem("request.num_frames", "null", what)]
