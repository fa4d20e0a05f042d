"""`ltxgen doctor`: whether runs would go well here."""

from __future__ import annotations

from ltxgen.cli.output import console
from ltxgen.config.errors import Problem, Refusal

_FLAGS = ("--json", "--online")


def command(words: list[str], debug: bool) -> int:
    from ltxgen.config import compose
    from ltxgen.doctor.command import doctor

    overrides = [word for word in words if word not in _FLAGS]
    if unknown := [word for word in overrides if word.startswith("-")]:
        message = "takes key=value, --json and --online (asks the hub about your login)"
        raise Refusal([Problem("doctor", " ".join(unknown), message)])
    config = compose.compose_config(compose.name_recipe_paths(compose.open_overrides(overrides)))
    return doctor(config, console(), as_json="--json" in words, online="--online" in words)
