"""Values of a run's state as named tensors and JSON, and back bit for bit."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from ltxgen.diffusion.noise import NoiseSource


@dataclass(frozen=True)
class Packed:
    """A value taken apart: `structure` is JSON that refers to `tensors`, which are contiguous and on the CPU."""

    structure: Any
    tensors: Mapping[str, Tensor]

    def digest(self) -> str:
        """SHA-256 over everything in it."""
        found = hashlib.sha256(json.dumps(self.structure, sort_keys=True).encode())
        for name, tensor in sorted(self.tensors.items()):
            found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return found.hexdigest()


def pack(value: Any) -> Packed:
    """Take a value apart: tensors, numbers, texts, tuples, lists, mappings, ltxgen's dataclasses, a `NoiseSource`.

    Raises TypeError for anything else.
    """
    tensors: dict[str, Tensor] = {}
    names = map(str, itertools.count())

    def taken(value: Any) -> Any:
        match value:
            case None | bool() | int() | float() | str():
                return value
            case Tensor():
                name = next(names)
                tensors[name] = value.detach().cpu().contiguous()
                strides = None if value.is_contiguous() else list(value.stride())
                return {"tensor": name, "strides": strides, "on": "cpu" if value.device.type == "cpu" else "device"}
            case Fraction():
                return {"fraction": str(value)}
            case tuple():
                return {"tuple": [taken(item) for item in value]}
            case list():
                return {"list": [taken(item) for item in value]}
            case Mapping():
                return {"mapping": [[taken(key), taken(item)] for key, item in value.items()]}
            case NoiseSource():
                return {"noise": taken(value.state())}
        kind = type(value)
        if not dataclasses.is_dataclass(kind) or not kind.__module__.startswith("ltxgen."):
            raise TypeError(f"a {kind.__qualname__} can't be taken apart into tensors and numbers")
        fields = {field.name: taken(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"type": f"{kind.__module__}:{kind.__qualname__}", "fields": fields}

    return Packed(taken(value), tensors)


def unpack(packed: Packed, device: torch.device, dtype: torch.dtype) -> Any:
    """The value again; tensors that were on the run's device are now on `device`, where noise is drawn in `dtype`.

    Raises ValueError for a structure that `pack` did not make, or that holds a type that this process doesn't know.
    """

    def made(node: Any) -> Any:
        match node:
            case None | bool() | int() | float() | str():
                return node
            case {"tensor": name, "strides": strides, "on": place}:
                tensor = packed.tensors[name].to("cpu" if place == "cpu" else device)
                return tensor if strides is None else _with_strides(tensor, strides)
            case {"fraction": text}:
                return Fraction(text)
            case {"tuple": items}:
                return tuple(map(made, items))
            case {"list": items}:
                return list(map(made, items))
            case {"mapping": items}:
                return {made(key): made(item) for key, item in items}
            case {"noise": state}:
                return NoiseSource.from_state(made(state), device=device, dtype=dtype)
            case {"type": name, "fields": fields}:
                return _known_type(name)(**{key: made(item) for key, item in fields.items()})
        raise ValueError(f"no part of a stored value: {str(node)[:80]}")

    return made(packed.structure)


def _with_strides(tensor: Tensor, strides: list[int]) -> Tensor:
    """A copy that lies in memory as the stored one did: kernels, and so last bits, can depend on it."""
    repeated = [stride == 0 for stride in strides]  # of an expanded dimension, whose rows are one
    once = tensor[tuple(slice(1) if each else slice(None) for each in repeated)]
    laid = torch.empty_strided(once.shape, strides, dtype=tensor.dtype, device=tensor.device).copy_(once)
    return laid.expand(tensor.shape)


def _known_type(name: str) -> type:
    """A dataclass of ltxgen by name. Nothing is imported for a file's sake: its stage has imported what it writes."""
    module, _, qualname = name.partition(":")
    found = getattr(sys.modules.get(module), qualname, None) if module.startswith("ltxgen.") else None
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ValueError(f"holds a value of the unknown type {name}")
    return found
