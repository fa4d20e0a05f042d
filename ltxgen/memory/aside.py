"""Components set aside on the host while others need the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ltxgen.memory.host import host_buffer, packed_bytes, unpacked


class Aside:
    """Moves components' tensors from `device` to the host and back. Their host memory stays for the next time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[str, Tensor] = {}
        self._away: dict[str, Sequence[Tensor]] = {}

    def set_aside(self, name: str, tensors: Sequence[Tensor]) -> None:
        """Let the tensors of the component `name` hold their values on the host."""
        if name in self._away:
            return
        with torch.inference_mode(False), torch.no_grad():
            likes = {str(number): tensor for number, tensor in enumerate(tensors)}
            if name not in self._buffers:
                self._buffers[name] = host_buffer(packed_bytes(tensors), self._device)
            homes = unpacked(self._buffers[name], likes)
            for home, tensor in zip(homes.values(), tensors, strict=True):
                home.copy_(tensor, non_blocking=True)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            for home, tensor in zip(homes.values(), tensors, strict=True):
                tensor.data = home
        self._away[name] = tensors

    def bring_back(self, name: str) -> None:
        """Let them have their values on the device; nothing to do for a component that wasn't set aside."""
        with torch.inference_mode(False), torch.no_grad():
            for tensor in self._away.pop(name, ()):
                tensor.data = tensor.data.to(self._device, non_blocking=True, copy=True)

    def released(self, names: Sequence[str]) -> None:
        """Forget these components, which were dropped."""
        for name in names:
            self._away.pop(name, None)
            self._buffers.pop(name, None)
