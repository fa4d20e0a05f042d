"""`ltxgen show`: how a video was made."""

from __future__ import annotations

import sys

from ltxgen.cli.output import console
from ltxgen.config.errors import MISSING, Problem, Refusal


def command(words: list[str], debug: bool) -> int:
    from ltxgen.media.provenance import read_provenance
    from ltxgen.recipe.show import show_made

    places = [word for word in words if word != "--recipe"]
    if len(places) != 1 or len(words) > 2:
        message = "takes a video or a run's folder: `ltxgen show video.mp4`, with --recipe for the recipe alone"
        raise Refusal([Problem("show", " ".join(words) or MISSING, message)])
    made = read_provenance(places[0])
    if "--recipe" in words:
        sys.stdout.write(made.recipe)
    else:
        show_made(made, console())
    return 0
