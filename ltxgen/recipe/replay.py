"""Whether a run that was made again is the same run, and if not how far off it is and what was different."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltxgen.config.errors import MISSING, Problem, Refusal
from ltxgen.media.compare import compare_runs

RECIPE, MANIFEST = "recipe.yaml", "manifest.json"
# What of a manifest says where and how a run was made, rather than how it went.
_MADE_BY = ("versions", "runtime", "artifacts", "request")
_NOT_CONTENT = ("why", "repo", "revision", "file")


@dataclass(frozen=True)
class Verdict:
    """`lines` tell it: each measure, then what was different between the two runs."""

    equal: bool
    lines: tuple[str, ...]


def recipe_of(folder: Path) -> Path:
    """The locked recipe of a run. Refusal where the folder holds none."""
    path = folder / RECIPE
    if not path.is_file():
        message = f"holds no {RECIPE}; give the folder of a run that ended" if folder.is_dir() else "no such folder"
        raise Refusal([Problem("replay", str(folder), message)])
    return path


def verdict(folder: Path, again: Path) -> Verdict:
    """Compare the run in `folder` with the same one made `again`."""
    found = compare_runs(again, folder, every_tensor=True)
    differences: list[float] = [*found.latents.values()]
    if found.frames is not None:
        differences.append(found.frames.mean_abs)
    if found.audio is not None:
        differences.append(found.audio.relative_l2)
    if not differences:
        raise Refusal([Problem("replay", str(folder), "holds nothing that can be compared")])
    if not any(differences):
        return Verdict(True, (f"bit-equal: {_compared(found)}",))
    measures = (f"{what} {measure}: {value}" for what, measure, value in found.rows() if value != "0.000e+00")
    manifests = [json.loads((each / MANIFEST).read_text(encoding="utf-8")) for each in (folder, again)]
    reasons = list(_differences(*manifests)) or ["versions, device, files and request are the same in both"]
    return Verdict(False, ("not bit-equal", *measures, *reasons))


def _compared(found: Any) -> str:
    parts = [name for name, there in (("picture", found.frames), ("sound", found.audio)) if there is not None]
    if found.latents:
        parts.append(f"{len(found.latents)} tensors")
    return ", ".join(parts)


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What may be the reason, from the manifests."""
    before, after = (dict(_flat({key: each.get(key, {}) for key in _MADE_BY})) for each in (then, now))
    for key in dict.fromkeys([*before, *after]):
        if key.rpartition(".")[2] not in _NOT_CONTENT and before.get(key, MISSING) != after.get(key, MISSING):
            yield f"{key}: was {before.get(key, 'absent')}, is {after.get(key, 'absent')}"


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node
