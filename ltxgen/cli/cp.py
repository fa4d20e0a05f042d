"""`ltxgen cp`: a recipe of one's own to edit."""

from __future__ import annotations

import re
from pathlib import Path

from ltxgen.config.errors import MISSING, Problem, Refusal, did_you_mean


def command(words: list[str], debug: bool) -> int:
    from ltxgen.config import compose

    if len(words) != 2:
        raise Refusal([Problem("cp", " ".join(words) or MISSING, "takes two names: `ltxgen cp RECIPE NEW`")])
    source, target = words
    files = compose.recipe_files()
    if source not in files:
        message = f"no such recipe; there are {', '.join(files)}{did_you_mean(source, files)}"
        raise Refusal([Problem("cp", source, message)])
    name = target.removesuffix(".yaml")
    if not re.fullmatch(r"\w[\w-]*", name):
        raise Refusal([Problem("cp", target, "a recipe's name is letters, digits, _ and -; it goes into ./recipes")])
    path = Path("recipes") / f"{name}.yaml"
    if path.exists():
        raise Refusal([Problem("cp", str(path), "exists already; choose another name")])
    path.parent.mkdir(exist_ok=True)
    text = files[source].read_text(encoding="utf-8")
    path.write_text(re.sub(rf"\b{re.escape(source)}\b", name, text), encoding="utf-8")  # its commands and output folder
    print(f"{path}; run it with: ltxgen +recipe={path.stem}")
    return 0
