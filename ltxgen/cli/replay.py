"""`ltxgen replay`: makes a run again."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ltxgen.cli.output import print_files
from ltxgen.config.errors import MISSING, Problem, Refusal


def command(words: list[str], debug: bool) -> int:
    """Exit code 0: made again, and with --check bit-equal; 1: it is not."""
    from ltxgen.config import compose
    from ltxgen.recipe.launch import run_config
    from ltxgen.recipe.replay import recipe_of, verdict

    overrides = [word for word in words if "=" in word or word.startswith("~")]
    folders = [word for word in words if word not in (*overrides, "--check")]
    if len(folders) != 1:
        message = "takes one folder of a run: `ltxgen replay FOLDER [--check] [key=value ...]`"
        raise Refusal([Problem("replay", " ".join(folders) or MISSING, message)])
    folder, checks = Path(folders[0]).expanduser(), "--check" in words
    with tempfile.TemporaryDirectory(prefix="ltxgen-") as scratch:
        # A check makes everything anew, and leaves nothing that wasn't asked for.
        own = ["cache=off", f"output.dir={scratch}/run"] if checks else []
        given = compose.open_overrides([f"+recipe={recipe_of(folder)}", *own, *overrides])
        made = run_config(compose.compose_config(compose.name_recipe_paths(given)), ("--debug",) if debug else ())
        if made is None:
            return 0
        if not checks:
            print_files(made)
            return 0
        found = verdict(folder, made)
    print("\n".join(found.lines))
    return 0 if found.equal else 1
