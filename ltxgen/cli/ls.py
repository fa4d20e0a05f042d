"""`ltxgen ls`: recipes and choices."""

from __future__ import annotations

from collections.abc import Mapping

from ltxgen.config.errors import Problem, Refusal, did_you_mean


def command(words: list[str], debug: bool) -> int:
    from ltxgen.config import compose

    groups = compose.groups()
    if not words:
        for group, names in groups.items():
            print(f"{group + ':':<12} {', '.join(names)}")
        return 0
    group = " ".join(words)
    if group not in groups:
        message = f"must be one of {', '.join(groups)}{did_you_mean(group, groups)}"
        raise Refusal([Problem("ls", group, message)])
    lacking = _lacking_attention() if group == "attention" else {}
    for name in groups[group]:
        print(f"{name:<24} {compose.first_comment(group, name)}")
        if lacking.get(name):
            print(f"{'':<24} unavailable here: {lacking[name]}")
    return 0


def _lacking_attention() -> Mapping[str, str | None]:
    """Why each attention backend can't run on this machine in bfloat16; None for those that can."""
    from ltxgen.attention.choice import availability
    from ltxgen.attention.protocol import DeviceFacts
    from ltxgen.runtime.environment import DTYPES, resolve_device

    return availability(DeviceFacts.of(resolve_device()), DTYPES["bfloat16"])
