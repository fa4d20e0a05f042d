"""Which backend serves which role: asked for by name, or decided by `auto`; and what is refused. For the plan."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ltxgen.attention.auto import decide
from ltxgen.attention.protocol import (
    AUTO,
    FALLBACK,
    ROLES,
    Choice,
    DeviceFacts,
    RoleAttention,
    RoleSpec,
    backend,
    backend_kinds,
)
from ltxgen.config.errors import Problem, did_you_mean
from ltxgen.models.transformer.attention import AttentionByRole


@dataclass(frozen=True)
class AttentionPlan:
    """The transformer's attention functions, how they were chosen, and what can't be had."""

    functions: AttentionByRole
    choices: tuple[Choice, ...]
    problems: tuple[Problem, ...]

    def lines(self) -> list[str]:
        """The choices as text, then what was passed over; roles that share one on one line."""
        lines = []
        for (kind, masked, why), roles in _grouped(((c.kind, c.masked, c.why), c.role) for c in self.choices):
            calls = "" if masked == kind else f", calls with a mask {masked}"
            lines.append(f"{_named(roles)}: {kind}{calls}: {why}")
        passed = (((kind, why), c.role) for c in self.choices for kind, why in c.passed_over)
        for (kind, why), roles in _grouped(passed):
            lines.append(f"{_named(roles)}, not {kind}: {why}")
        return lines


class Side(NamedTuple):
    """What is known of a stream: the size of its heads, and its tokens."""

    head_dim: int | None = None
    tokens: int | None = None


def role_specs(
    video: Side = Side(),  # noqa: B008 - frozen
    audio: Side = Side(),  # noqa: B008 - frozen
    text_tokens: int | None = None,
    *,
    masked: Iterable[str] = (),
    needs_lse: Iterable[str] = (),
) -> tuple[RoleSpec, ...]:
    """The six roles of an audio-video transformer; attention between the streams has the audio stream's heads."""
    sizes = {
        "video_self": (video.head_dim, video.tokens, video.tokens),
        "audio_self": (audio.head_dim, audio.tokens, audio.tokens),
        "video_text": (video.head_dim, video.tokens, text_tokens),
        "audio_text": (audio.head_dim, audio.tokens, text_tokens),
        "video_from_audio": (audio.head_dim, video.tokens, audio.tokens),
        "audio_from_video": (audio.head_dim, audio.tokens, video.tokens),
    }
    masked, needs_lse = set(masked), set(needs_lse)
    return tuple(RoleSpec(role, role in masked, *sizes[role], needs_lse=role in needs_lse) for role in ROLES)


def choose(
    config: Any, device: DeviceFacts, dtype: torch.dtype, roles: Sequence[RoleSpec] = role_specs()
) -> AttentionPlan:
    """Serve every role as `config` (an `attention` YAML) asks.

    A backend that is named and can't run here is a Problem at `attention` that says why and what can.
    """
    choices, problems = [], []
    for role in roles:
        kind, path = _asked_for(config, role.role)
        if kind == AUTO:
            choices.append(decide(role, device, dtype))
            continue
        refused = _refusal(kind, role, device, dtype)
        if refused is not None:
            problems.append(Problem(path, kind, refused))
            continue
        choices.append(_choice_by_name(kind, role))
    served = {choice.role: RoleAttention(backend(choice.kind), backend(choice.masked)) for choice in choices}
    return AttentionPlan(AttentionByRole(**served), tuple(choices), tuple(dict.fromkeys(problems)))


def availability(device: DeviceFacts, dtype: torch.dtype) -> dict[str, str | None]:
    """Every backend by name, with why it can't run here or None if it can. Imports the packages that are installed."""
    return {kind: backend(kind).available(device, dtype) for kind in backend_kinds()}


def _asked_for(config: Any, role: str) -> tuple[str, str]:
    """The kind that a role is to have, and the config path that says so."""
    if config.kind != AUTO:
        return config.kind, "attention"
    return getattr(config, role) or AUTO, f"attention.{role}"


def _refusal(kind: str, role: RoleSpec, device: DeviceFacts, dtype: torch.dtype) -> str | None:
    if kind not in backend_kinds():
        return f"must be one of {', '.join((AUTO, *backend_kinds()))}{did_you_mean(kind, backend_kinds())}"
    candidate = backend(kind)
    wrong = candidate.available(device, dtype)
    if wrong is None:
        misfit = candidate.misfit(role)
        return misfit and f"can't serve {role.role}: {misfit}"
    able = [name for name, reason in availability(device, dtype).items() if reason is None]
    return f"can't run here: {wrong}; there are {', '.join(able)}"


def _choice_by_name(kind: str, role: RoleSpec) -> Choice:
    named = backend(kind)
    why = f"asked for by name; it approximates: {named.approximates}" if named.approximates else "asked for by name"
    return Choice(role.role, kind, kind if named.takes_masks else FALLBACK, why)


def _grouped(pairs: Iterable[tuple[Any, str]]) -> list[tuple[Any, list[str]]]:
    groups: dict[Any, list[str]] = {}
    for key, role in pairs:
        groups.setdefault(key, []).append(role)
    return list(groups.items())


def _named(roles: Sequence[str]) -> str:
    others = [role for role in ROLES if role not in roles]
    if len(others) > len(roles) or len(others) > 2:
        return ", ".join(roles)
    return f"all roles but {', '.join(others)}" if others else "all roles"
