"""Versions, codecs and attention backends."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

import av
import torch
from packaging.requirements import Requirement

from ltxgen import __version__
from ltxgen.attention.choice import availability
from ltxgen.attention.protocol import DeviceFacts
from ltxgen.doctor.finding import Finding, finding
from ltxgen.media.trial import try_sound, try_video
from ltxgen.runtime.environment import lacking_compiler

_SHOWN = ("torch", "transformers", "av", "accelerate", "safetensors", "huggingface_hub")
# What ltxgen does without, and what it then lacks.
_OPTIONAL = {
    "diffusers": "`ltxgen bench` has no peer to compare with",
    "tensorboard": "output.tensorboard can't be used",
}


def versions(device: torch.device) -> Iterator[Finding]:
    """Of ltxgen, Python and the packages; a problem for one that is older than ltxgen asks for."""
    yield Finding("software", "ltxgen", "ok", __version__)
    yield Finding("software", "python", "ok", f"{platform.python_version()} on {platform.platform()}")
    wanted = _requirements()
    for name in dict.fromkeys([*_SHOWN, *wanted]):
        yield _package(name, wanted.get(name))
    built_for = torch.version.cuda or torch.version.hip
    yield Finding("software", "CUDA of torch", "ok", built_for or "none: built for the CPU")
    if device.type == "cuda":
        lacking = lacking_compiler(device)
        installed = _version("triton") or _version("pytorch-triton") or "is there"
        yield Finding("software", "triton", "note" if lacking else "ok", lacking or installed)
    for name, lost in _OPTIONAL.items():
        yield Finding("software", name, "ok", _version(name) or f"not installed, which is optional: {lost}")


def codecs() -> Iterator[Finding]:
    """The codecs of an mp4, by encoding and decoding with them."""
    fix = "pip install --force-reinstall av: its wheels have both"
    right = f"encodes and decodes, with PyAV {av.__version__} and FFmpeg {av.ffmpeg_version_info}"
    yield finding("codecs", "H.264", try_video(), right, fix)
    yield finding("codecs", "AAC", try_sound(), right, fix)


def attention(device: torch.device, dtype: torch.dtype) -> Iterator[Finding]:
    """Every backend, with why it can't be had; `auto` chooses among the others."""
    for kind, lacking in availability(DeviceFacts.of(device), dtype).items():
        yield Finding("attention", kind, "note" if lacking else "ok", lacking or "available")


def _package(name: str, wanted: Requirement | None) -> Finding:
    installed = _version(name)
    if installed is None:
        return Finding("software", name, "problem", "not installed", f"pip install '{wanted or name}'")
    if wanted is not None and not wanted.specifier.contains(installed, prereleases=True):
        return Finding("software", name, "problem", f"{installed} is not {wanted.specifier}", f"pip install '{wanted}'")
    return Finding("software", name, "ok", installed)


def _requirements() -> dict[str, Requirement]:
    """What ltxgen needs, by package; nothing is known of a checkout that was never installed."""
    try:
        listed = [Requirement(text) for text in requires("ltxgen") or ()]
    except PackageNotFoundError:
        return {}
    return {each.name: each for each in listed if each.marker is None or each.marker.evaluate({"extra": ""})}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
