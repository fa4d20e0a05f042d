"""`ltxgen resume`: goes on with what was interrupted."""

from __future__ import annotations

from pathlib import Path

from ltxgen.cli.output import print_files, print_page
from ltxgen.config.errors import MISSING, Problem, Refusal


def command(words: list[str], debug: bool) -> int:
    from ltxgen.recipe.launch import resume
    from ltxgen.recipe.sweep import resume_sweep
    from ltxgen.recipe.sweep_folder import RECORD

    if len(words) != 1:
        raise Refusal([Problem("resume", " ".join(words) or MISSING, "takes one folder: `ltxgen resume FOLDER`")])
    path = Path(words[0]).expanduser()
    if not (path / RECORD).exists():
        print_files(resume(path, ("--debug",) if debug else ()))
        return 0
    for folder in resume_sweep(path, debug):
        print(folder)
    print_page(path)
    return 0
