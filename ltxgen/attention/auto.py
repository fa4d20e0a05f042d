"""The fastest class of backend for each role, by what is known of device, dtype, mask and length. Pure data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from ltxgen.attention.protocol import (
    FALLBACK,
    HALF,
    ROLES,
    AttentionBackend,
    Choice,
    DeviceFacts,
    RoleSpec,
    backend,
    backend_kinds,
)
from ltxgen.attention.sdpa import Sdpa
from ltxgen.registry import register


@register("attention", "auto")
@dataclass(frozen=True)
class AutoConfig:
    """The fastest class of backend for each role; a role that names a backend gets that one."""

    video_self: str | None = None
    audio_self: str | None = None
    video_text: str | None = None
    audio_text: str | None = None
    video_from_audio: str | None = None
    audio_from_video: str | None = None

    def build(self) -> AttentionBackend:
        """What fits any role anywhere; `choose` knows device and roles and does better."""
        return Sdpa()


assert tuple(field.name for field in fields(AutoConfig)) == ROLES


# Speed classes. Measured on one H200 (torch 2.11, CUDA 13), 32 heads of 128, 6144 and 24576 tokens, bfloat16.
_MEASURED = "622-651 and 618-625 TFLOP/s at 6144 and 24576 tokens on an H200, torch's own flash kernel 263-304 and 350"
_RANKING = {
    9: (
        ("flash4", "written for Hopper; not measured by us"),
        ("flash3", "written for Hopper, published at up to 740 TFLOP/s on an H100; not measured by us"),
        ("sdpa_cudnn", f"the fastest class that comes with torch: {_MEASURED}"),
    ),
    10: (
        ("flash4", "written for Blackwell; not measured by us"),
        ("sdpa_cudnn", "the kernel of torch that is written for Blackwell; not measured by us"),
    ),
}
# Query and key tokens from which attention is worth a kernel of its own; below, launching outweighs the work.
LONG = 1024
_LONG_UNLESS_KNOWN = frozenset({"video_self", "video_text"})
_NEVER_BY_ITSELF = {
    "reference": "the yardstick: it holds every score in memory",
    "sdpa_flash": "slower than cuDNN where measured; sdpa takes it where torch prefers it",
    "sdpa_efficient": "sdpa takes it where torch prefers it",
    "flex": "compiles anew for every shape, and not known to be faster",
    "flash2": "torch has the same kernel",
    "xformers": "torch has the same kernels",
}


def decide(role: RoleSpec, device: DeviceFacts, dtype: torch.dtype) -> Choice:
    """The first of its ranking that runs here and fits `role`, and why each of the others does not or is not it."""
    ranking = _ranking(role, device, dtype)
    passed_over = {}
    taken, why = ranking[-1]
    for kind, reason in ranking[:-1]:
        candidate = backend(kind)
        wrong = candidate.available(device, dtype) or candidate.supports(role)
        if wrong is None:
            taken, why = kind, reason
            break
        passed_over[kind] = wrong
    for kind in backend_kinds():
        if kind != taken and kind not in passed_over:
            passed_over[kind] = _why_not(kind, taken, ranking, role, device, dtype)
    return Choice(role.role, taken, FALLBACK, why, tuple(sorted(passed_over.items())))


def _ranking(role: RoleSpec, device: DeviceFacts, dtype: torch.dtype) -> tuple[tuple[str, str], ...]:
    """Kinds with what speaks for them, best first; the last one is `FALLBACK`, which always runs."""
    if device.type != "cuda":
        return ((FALLBACK, "torch's own on this device"),)
    if dtype not in HALF:
        return ((FALLBACK, "the fast kernels compute in 16 bits"),)
    if role.has_mask:
        return ((FALLBACK, "torch's choice among the kernels that take a mask"),)
    if not _is_long(role):
        return ((FALLBACK, f"fewer than {LONG} queries or keys: the kernel hardly matters"),)
    major = 10 if device.capability[0] == 11 else device.capability[0]
    return (*_RANKING.get(major, ()), (FALLBACK, "torch's choice among its kernels"))


def _is_long(role: RoleSpec) -> bool:
    if role.q_tokens is None or role.k_tokens is None:
        return role.role in _LONG_UNLESS_KNOWN
    return min(role.q_tokens, role.k_tokens) >= LONG


def _why_not(
    kind: str,
    taken: str,
    ranking: Sequence[tuple[str, str]],
    role: RoleSpec,
    device: DeviceFacts,
    dtype: torch.dtype,
) -> str:
    candidate = backend(kind)
    # Its package is looked for and not imported: nothing depends on whether it works.
    wrong = candidate.available(device, dtype, importing=False) or candidate.supports(role)
    if wrong is not None:
        return wrong
    if candidate.approximates:
        return f"only by name, it approximates: {candidate.approximates}"
    if kind == FALLBACK or any(kind == ranked for ranked, _ in ranking):
        return f"comes after {taken} in speed"
    return _NEVER_BY_ITSELF.get(kind, "only where its speed counts: long unmasked attention in 16 bits")
