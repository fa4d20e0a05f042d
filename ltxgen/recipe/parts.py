"""Components as the executor wants them: loaded from the plan's artifacts, fitted with LoRAs, freed."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ltxgen.artifacts.artifact import ResolvedArtifact
from ltxgen.artifacts.cache_folder import cache_folder
from ltxgen.artifacts.chat import load_chat
from ltxgen.artifacts.components import CHAT, TOKENIZER, TRANSFORMERS, BuildOptions, artifact_of
from ltxgen.artifacts.fusion import FusedLoras
from ltxgen.artifacts.load import Loading, tensor_reader
from ltxgen.artifacts.lora import IC_LORA
from ltxgen.artifacts.placement import WHOLE, Placement
from ltxgen.artifacts.tokenizer import load_tokenizer
from ltxgen.memory.aside import Aside
from ltxgen.models.transformer import Transformer
from ltxgen.runtime.environment import use_compile_cache
from ltxgen.runtime.memory import free_memory
from ltxgen.stage.protocol import PartRequest

KNOWN_LORAS = {"distilled": "distilled_lora", IC_LORA: IC_LORA}


def lora_artifact(name: str) -> str:
    """The artifact behind a name in `stages.*.loras`: two that recipes know by their part, others are the user's."""
    return KNOWN_LORAS.get(name, f"loras.{name}")


class ArtifactParts:
    """Loads components straight to `device`, as far as `placement` has them there.

    LoRAs are fused into the live weights and read back out of the file. The transformer's blocks run with `fused`
    kernels, or with `compiling`, a function for notes, compiled. With `swaps`, components that wait for a later stage
    do so on the host.

    `serve` has it fit its components to another run, one that wants the same.
    """

    def __init__(
        self,
        artifacts: Mapping[str, ResolvedArtifact],
        options: BuildOptions,
        device: torch.device,
        placement: Placement = WHOLE,
        *,
        fused: bool = False,
        compiling: Callable[[str], None] | None = None,
        swaps: bool = False,
    ) -> None:
        self._fused_kernels = fused
        self._compiling = compiling
        self._artifacts = artifacts
        self._options = options
        self._device = device
        self._placement = placement
        self._fused: dict[str, FusedLoras] = {}
        self._aside = Aside(device)
        self._swaps = swaps

    def serve(self, artifacts: Mapping[str, ResolvedArtifact], swaps: bool) -> None:
        """From now on, LoRAs are these `artifacts`, and components wait on the host or not."""
        self._artifacts, self._swaps = artifacts, swaps

    def build(self, request: PartRequest) -> Any:
        if request.name == TOKENIZER:
            return load_tokenizer(self._artifacts[artifact_of(request.name)])
        if request.name == CHAT:
            return load_chat(self._artifacts[artifact_of(request.name)])
        return self.finish(request, self.start(request).load())

    def start(self, request: PartRequest) -> Loading:
        artifact = self._artifacts[artifact_of(request.name)]
        return Loading(request.name, artifact, self._device, request.dtype, self._options, placement=self._placement)

    def finish(self, request: PartRequest, loaded: nn.Module) -> nn.Module:
        artifact = self._artifacts[artifact_of(request.name)]
        if request.name in TRANSFORMERS and self._fused_kernels:
            from ltxgen.models.transformer.fused import use_fused_kernels  # Triton comes with torch's CUDA builds only

            use_fused_kernels(loaded)
        if request.name in TRANSFORMERS and self._compiling is not None:
            from ltxgen.models.transformer.compilation import compile_blocks  # seconds to import

            use_compile_cache(cache_folder() / "inductor")
            assert isinstance(loaded, Transformer)
            compile_blocks(loaded, self._compiling)
        # Most runs fuse LoRAs once and never take them out: no copy of the weights is kept, the file still has them.
        reload, plain = (
            functools.partial(tensor_reader, request.name, artifact, request.dtype, options, self._device)
            for options in (self._options, dataclasses.replace(self._options, float8=None))
        )
        self._fused[request.name] = FusedLoras(
            loaded, keep_original=None, reload=reload, plain=plain, placement=self._placement
        )
        return loaded

    def adapt(self, part: Any, request: PartRequest, later: Sequence[PartRequest]) -> None:
        self._aside.bring_back(request.name)
        if request.name in self._fused:
            loras = [(self._artifacts[lora_artifact(name)], strength) for name, strength in request.loras]
            self._fused[request.name].apply(loras)

    def set_aside(self, parts: Mapping[str, Any]) -> None:
        self._placement.set_aside(list(parts))
        if self._swaps:
            self._move_to_host(parts)
        free_memory(self._device)

    def wait_on_host(self, parts: Mapping[str, Any]) -> None:
        """As `set_aside`, and off the device whatever this run does."""
        self._placement.set_aside(list(parts))
        self._move_to_host(parts)
        free_memory(self._device)

    def _move_to_host(self, parts: Mapping[str, Any]) -> None:
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self._aside.set_aside(name, [*part.parameters(), *part.buffers()])

    def released(self, names: Sequence[str]) -> None:
        self._aside.released(names)
        self._placement.released(names)
        for name in names:  # after the placement, which may be reading them ahead
            if fused := self._fused.pop(name, None):
                fused.close()
        free_memory(self._device)
