"""The transformer's linear layers in fp8, read from files that hold them plain or in fp8.

Files in fp8 (`ltx-2.3-22b-dev-fp8.safetensors`) hold such a layer as `weight` in e4m3, `weight_scale` in fp32 and
`input_scale`, a scale for all activations measured beforehand. That one isn't used: ours follow the activations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

import torch

from ltxgen.artifacts.components import ComponentSpec
from ltxgen.artifacts.safetensors_file import ALL_ROWS, BadFile
from ltxgen.artifacts.source import FileSource, TensorSource
from ltxgen.models.transformer.float8 import FLOAT8, Float8Layers, Scaled, plain_rows, scaled_rows

WEIGHT, SCALE, INPUT_SCALE = ".weight", ".weight_scale", ".input_scale"
FLOAT8_FORMATS = ("F8_E4M3", "F8_E5M2")


class Float8Source:
    """A component's tensors with the linear layers of `chosen` in fp8 and all others plain, however they are stored.

    A layer in fp8 has `weight` in e4m3 and `weight_scale` (N, 1) in fp32. They are made together, on the device
    `made_on` or without one where they are read to: read the weight first and the scale as well. A file that stores
    layers in fp8 has chosen them: of these, `chosen` takes its own, and they come as stored. Raises BadFile for a file
    whose fp8 can't be read.
    """

    def __init__(
        self,
        source: TensorSource,
        spec: ComponentSpec,
        chosen: Float8Layers | None,
        made_on: torch.device | str | None = None,
    ) -> None:
        keys = spec.file_keys(source.shapes)
        stored = stored_float8(source, spec)
        dropped = {name + suffix for name in stored.values() for suffix in (SCALE, INPUT_SCALE)}
        plain = {key: shape for key, shape in source.shapes.items() if key not in dropped}
        weights = {key.removesuffix(WEIGHT): plain[name] for key, name in keys.items() if key.endswith(WEIGHT)}
        names = chosen.among((name, weights[name]) for name in stored or weights) if chosen else ()
        self._source = source
        self._made_on = None if made_on is None else torch.device(made_on)
        self._scales: dict[str, torch.Tensor] = {}
        # Names in the file.
        self.stored = frozenset(stored.values())
        self.layers = frozenset(keys[name + WEIGHT].removesuffix(WEIGHT) for name in names)
        self.shapes = plain | {name + SCALE: (plain[name + WEIGHT][0], 1) for name in self.layers}

    def expect(self, reads: Mapping[str, slice], device: torch.device) -> Sequence[str]:
        scales = {name + SCALE for name in self.layers}
        order = self._source.expect({key: rows for key, rows in reads.items() if key not in scales}, device)
        return [each for key in order for each in (key, key.removesuffix(WEIGHT) + SCALE) if each in reads]

    def read(self, key: str, device: torch.device | None, dtype: torch.dtype, rows: slice = ALL_ROWS) -> torch.Tensor:
        """As every source; but of a layer in fp8, what it holds, whatever `dtype`."""
        if key in self._scales:
            return self._scales.pop(key)
        name = key.removesuffix(WEIGHT)
        if name in self.layers:
            scaled = self._scaled(name, device, dtype, rows)
            self._scales[name + SCALE] = scaled.scales
            return scaled.values
        if name in self.stored and key.endswith(WEIGHT):
            return plain_rows(self._as_stored(name, device, rows), dtype)
        return self._source.read(key, device, dtype, rows)

    def _scaled(self, name: str, device: torch.device | None, dtype: torch.dtype, rows: slice) -> Scaled:
        if name in self.stored:
            return self._as_stored(name, device, rows)
        # Through `dtype`, in which LoRAs are added as well: without one, fused weights are the loaded ones.
        scaled = scaled_rows(self._source.read(name + WEIGHT, self._made_on or device, dtype, rows))
        return scaled if device is None else Scaled(*(each.to(device) for each in scaled))

    def _as_stored(self, name: str, device: torch.device | None, rows: slice) -> Scaled:
        values = self._source.read(name + WEIGHT, device, FLOAT8, rows)
        scale = self._source.read(name + SCALE, device, torch.float32)
        num_rows = self._source.shapes[name + WEIGHT][0]
        return Scaled(values, scale.reshape(-1, 1).expand(num_rows, 1)[rows].contiguous())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._source.__exit__(kind, error, trace)


def stored_float8(source: TensorSource, spec: ComponentSpec) -> dict[str, str]:
    """The component's linear layers that a file stores in fp8: names in the module to names in the file.

    Raises BadFile where any of its fp8 is not e4m3 with a scale for the weight or for each of its rows, and for a scale
    of what isn't in fp8.
    """
    if not isinstance(source, FileSource):
        return {}
    keys = spec.file_keys(source.shapes)
    stored = {key: name for key, name in keys.items() if source.stored_format(name) in FLOAT8_FORMATS}
    unknown = [name for name in stored.values() if not _is_scaled(source, name)]
    scales = [(key.removesuffix(SCALE) + WEIGHT, name) for key, name in keys.items() if key.endswith(SCALE)]
    unknown += [name for weight, name in scales if weight not in stored]
    if unknown:
        raise BadFile(
            f"stores {len(unknown)} tensors of {spec.name} as fp8 that can't be run ({unknown[0]}): only linear "
            "layers' weights in e4m3, each with its weight_scale, can; use the bf16 file"
        )
    return {key.removesuffix(WEIGHT): name.removesuffix(WEIGHT) for key, name in stored.items()}


def _is_scaled(source: FileSource, key: str) -> bool:
    shape, scale = source.shapes[key], source.shapes.get(key.removesuffix(WEIGHT) + SCALE)
    is_weight = key.endswith(WEIGHT) and len(shape) == 2 and source.stored_format(key) == "F8_E4M3"
    return is_weight and scale is not None and math.prod(scale) in (1, shape[0])
