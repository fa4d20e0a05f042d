"""The `synthetic` source: the real architecture, filled with seeded random weights straight on the device.

For planning, timing and memory where the files can't be had; what comes out means nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from ltxgen.artifacts.artifact import ArtifactSpec, ResolvedArtifact
from ltxgen.artifacts.safetensors_file import ALL_ROWS
from ltxgen.artifacts.seeded import seeded_tensor
from ltxgen.config.errors import MISSING, Problem, did_you_mean

ARCHITECTURES = Path(__file__).parent / "architectures"

# An architecture file holds one config per artifact, each shaped like that artifact's own: `checkpoint` the content of
# the metadata `config`, upscalers theirs, `text_encoder` a config.json, `distilled_lora` {"rank": ...}. What it doesn't
# say is as in the one that it is `like`; null: there is none.


@cache
def architecture(name: str) -> Mapping[str, Any]:
    """A shipped architecture: `ltx23_22b`, `ltx2_19b`, `ltx23_tiny`, `ltx2_tiny`. ValueError for an unknown name."""
    path = ARCHITECTURES / f"{name}.json"
    known = sorted(file.stem for file in ARCHITECTURES.glob("*.json"))
    if name not in known:
        raise ValueError(f"must be one of {', '.join(known)}{did_you_mean(name, known)}")
    configs = json.loads(path.read_text(encoding="utf-8"))
    like = configs.pop("like", None)
    configs = {**(architecture(like) if like else {}), **configs}
    return {artifact: config for artifact, config in configs.items() if config is not None}


def synthetic_artifact(spec: ArtifactSpec) -> ResolvedArtifact | Problem:
    """The artifact `spec.name` of `spec.architecture`, without a file."""
    try:
        configs = architecture(spec.architecture)
    except ValueError as error:
        return Problem(f"artifacts.{spec.name}.architecture", spec.architecture, str(error))
    if spec.name not in configs:
        return Problem(
            spec.config_path,
            MISSING,
            f"the synthetic source has no {spec.name}, only {', '.join(configs)}; set a file",
        )
    return ResolvedArtifact(
        name=spec.name,
        path=None,
        place="synthetic",
        reason=f"random weights (seed {spec.seed}) in the architecture {spec.architecture}; the output means nothing",
        generation=spec.generation,
        synthetic_config=configs[spec.name],
        seed=spec.seed,
        config_path=spec.config_path,
    )


class SyntheticSource:
    """Makes each tensor when it is read, on the device `made_on`, or without one where it is read to.

    What is made differs from device to device.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        seed: int,
        *,
        component: str = "",
        made_on: torch.device | str | None = None,
    ) -> None:
        self.shapes = shapes
        self._made_on = None if made_on is None else torch.device(made_on)
        self._seed = seed
        self._component = component

    def expect(self, reads: Mapping[str, slice], device: torch.device) -> Sequence[str]:
        return list(reads)

    def read(self, key: str, device: torch.device | None, dtype: torch.dtype, rows: slice = ALL_ROWS) -> torch.Tensor:
        where = self._made_on or device or torch.device("cpu")
        made = seeded_tensor(self._seed, key, self.shapes[key], where, dtype, component=self._component)
        return (made if rows == ALL_ROWS else made[rows].clone()).to(device or where)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None
