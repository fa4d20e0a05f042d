"""LoRAs fused into a transformer's live weights, and taken out again exactly.

W' = W + Σ round_W( (B · strength·alpha/rank) @ A ): each product in the LoRA's stored dtype, rounded to the weight's,
products summed, then added. Official LoRAs have no alpha (scale 1). Agrees with ltx_core/loader/fuse_loras.py for bf16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import nn

from ltxgen.artifacts.artifact import ResolvedArtifact
from ltxgen.artifacts.float8 import SCALE
from ltxgen.artifacts.load import ReadTensor
from ltxgen.artifacts.lora import Lora, linear_weights, match_lora, open_lora, touched_modules
from ltxgen.artifacts.placement import WHOLE, Placement
from ltxgen.artifacts.source import FileSource, TensorSource
from ltxgen.models.transformer.float8 import Float8Linear, scaled_rows

Keep = Literal["device", "cpu"]
Reload = Callable[[], AbstractContextManager[ReadTensor]]


@dataclass(frozen=True)
class Fusion:
    """What is in the weights: (name, strength) of each LoRA, the touched modules, and notes for the user."""

    loras: tuple[tuple[str, float], ...] = ()
    modules: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def fuse(
    module: nn.Module,
    loras: Sequence[tuple[Lora, float]],
    *,
    keep_original: Keep | None = None,
    plain: Reload | None = None,
    placement: Placement = WHOLE,
    files: ExitStack | None = None,
) -> dict[str, torch.Tensor]:
    """Add LoRAs to the live weights of `module`, in place, pair by pair; strengths of 0 are skipped.

    Of each weight, the rows that `placement` holds here are changed. A layer in fp8 gets its sum from the plain weight,
    read through `plain`, and is scaled afterwards: added to what it holds, most of a LoRA would be rounded away.
    Returns the weights as they were, by parameter name, on their device or the CPU (empty for keep_original=None). Give
    them to `restore`. The LoRAs' files stay open in `files`: a placement that reads weights anew adds to them each
    time.
    """
    originals: dict[str, torch.Tensor] = {}
    weights = linear_weights(module)
    active = [(lora, strength) for lora, strength in loras if strength != 0]

    def keep(key: str, held: torch.Tensor) -> None:
        if keep_original is not None:
            target = held.device if keep_original == "device" else torch.device("cpu")
            originals[key] = held.detach().to(target, copy=True)

    def add(name: str, rows: slice, weight: torch.Tensor) -> None:
        delta = _delta(name, weight, rows, active, sources)
        keep(f"{name}.weight", weight)
        weight.add_(delta)

    def add_scaled(name: str, rows: slice, scales: list[torch.Tensor], held: torch.Tensor) -> None:
        assert read_plain is not None, f"{name} is in fp8: its plain weight has to come from somewhere"
        weight = read_plain(f"{name}.weight", held.device, rows)
        delta = _delta(name, weight, rows, active, sources)
        keep(f"{name}.weight", held)
        values, made = scaled_rows(weight.add_(delta))
        held.copy_(values)
        scales[:] = [made]

    def put_scales(name: str, scales: list[torch.Tensor], held: torch.Tensor) -> None:
        keep(name + SCALE, held)
        held.copy_(scales.pop())

    with ExitStack() as stack, torch.no_grad():
        sources = [stack.enter_context(open_lora(lora.artifact, weights)) for lora, _ in active]
        read_plain = stack.enter_context(plain()) if plain is not None and active else None
        try:
            for name in touched_modules([lora for lora, _ in active], weights):
                layer = module.get_submodule(name)
                parameter = module.get_parameter(f"{name}.weight")
                rows = placement.rows(parameter)
                if isinstance(layer, Float8Linear):
                    scales: list[torch.Tensor] = []
                    placement.change(parameter, partial(add_scaled, name, rows, scales))
                    placement.change(layer.weight_scale, partial(put_scales, name, scales))
                else:
                    placement.change(parameter, partial(add, name, rows))
        except BaseException:
            restore(module, originals, placement)  # half-fused weights must not be mistaken for clean ones
            raise
        if files is not None:
            files.push(stack.pop_all())
    return originals


def held_tensors(module: nn.Module, name: str) -> list[tuple[str, torch.Tensor]]:
    """What a linear layer's weight is held in, by parameter name: itself and, in fp8, its scales."""
    suffixes = (".weight", SCALE) if isinstance(module.get_submodule(name), Float8Linear) else (".weight",)
    return [(name + suffix, module.get_parameter(name + suffix)) for suffix in suffixes]


def restore(module: nn.Module, originals: Mapping[str, torch.Tensor], placement: Placement = WHOLE) -> None:
    """Put kept weights back, bit for bit."""
    with torch.no_grad():
        for name, original in originals.items():
            placement.change(module.get_parameter(name), partial(_fill, original), anew=True)


def _fill(content: torch.Tensor, tensor: torch.Tensor) -> None:
    tensor.copy_(content)


class FusedLoras:
    """The LoRAs in one transformer's weights: always fused from the clean weights, never stacked on each other.

    keep_original says where the touched weights are kept, as large as themselves; with None they are read again through
    `reload`, which opens the component's own file (`load.tensor_reader`). `plain` does so for a module without fp8, and
    is needed for one that has it.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        keep_original: Keep | None = "device",
        reload: Reload | None = None,
        plain: Reload | None = None,
        placement: Placement = WHOLE,
    ) -> None:
        if keep_original is None and reload is None:
            raise ValueError("keep_original = None needs `reload`, or fused LoRAs could never be taken out")
        has_float8 = any(isinstance(layer, Float8Linear) for layer in module.modules())
        if has_float8 and plain is None:
            raise ValueError("layers in fp8 need `plain`: LoRAs are added to plain weights")
        self._module = module
        self._keep = keep_original
        self._reload = reload
        self._plain = plain if has_float8 else None
        self._placement = placement
        self._originals: dict[str, torch.Tensor] = {}
        self._files = ExitStack()
        self._identity: tuple[tuple[object, float], ...] = ()
        self.fusion = Fusion()

    def apply(self, loras: Sequence[tuple[ResolvedArtifact, float]]) -> Fusion:
        """Make the weights hold exactly these (LoRA, strength); does nothing when they do already.

        Strengths of 0 are left out. Raises Refusal (from the headers, before any weight changes) for a LoRA that
        doesn't fit.
        """
        active = [(artifact, float(strength)) for artifact, strength in loras if strength != 0]
        identity = tuple((artifact.path or (artifact.name, artifact.seed), strength) for artifact, strength in active)
        if identity == self._identity:
            return self.fusion
        weights = linear_weights(self._module)
        matched = [(match_lora(artifact, weights), strength) for artifact, strength in active]
        self.restore()
        modules = touched_modules([lora for lora, _ in matched], weights)
        self.fusion = Fusion(
            loras=tuple((artifact.name, strength) for artifact, strength in active),
            modules=modules,
            notes=tuple(lora.note for lora, _ in matched if lora.note),
        )
        try:
            self._originals = fuse(
                self._module,
                matched,
                keep_original=self._keep,
                plain=self._plain,
                placement=self._placement,
                files=self._files,
            )
        except BaseException:
            if self._keep is None:
                self._read_again(modules)
            self.fusion = Fusion()
            raise
        self._identity = identity
        return self.fusion

    def restore(self) -> None:
        """Take all LoRAs out: the weights are bit for bit what they were."""
        if self._keep is None:
            self._read_again(self.fusion.modules)
        else:
            restore(self._module, self._originals, self._placement)
        self.close()
        self._originals = {}
        self._identity = ()
        self.fusion = Fusion()

    def close(self) -> None:
        """Close the LoRAs' files: the weights won't be used any more, or hold none."""
        self._files.close()

    def _read_again(self, modules: Sequence[str]) -> None:
        if not modules:
            return
        assert self._reload is not None, "checked when this was made"
        with self._reload() as read, torch.no_grad():
            for name in modules:
                for key, parameter in held_tensors(self._module, name):
                    rows = self._placement.rows(parameter)

                    def fill(held: torch.Tensor, key: str = key, rows: slice = rows) -> None:
                        held.copy_(read(key, held.device, rows))

                    self._placement.change(parameter, fill, anew=True)


def _delta(
    name: str,
    weight: torch.Tensor,
    rows: slice,
    active: Sequence[tuple[Lora, float]],
    sources: Sequence[TensorSource],
) -> torch.Tensor:
    """Sum of the LoRAs' products for one module's `rows`, in the dtype of `weight` on its device."""
    total: torch.Tensor | None = None
    for (lora, strength), source in zip(active, sources, strict=True):
        pair = lora.pairs.get(name)
        if pair is None:
            continue
        dtype = stored_dtype(source, pair.a, weight.dtype)
        a, b = source.read(pair.a, weight.device, dtype), source.read(pair.b, weight.device, dtype, rows)
        scale = strength
        if pair.alpha is not None:
            scale *= source.read(pair.alpha, torch.device("cpu"), torch.float32).item() / pair.rank
        product = ((b * scale) @ a).to(weight.dtype)
        total = product if total is None else total.add_(product)
    assert total is not None, "only touched modules are asked for"
    return total


def stored_dtype(source: TensorSource, key: str, otherwise: torch.dtype) -> torch.dtype:
    """The dtype a file stores a tensor in; `otherwise` for a source without files."""
    return source.stored_dtype(key) if isinstance(source, FileSource) else otherwise
