"""Which part of a component's tensors this process holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from ltxgen.artifacts.safetensors_file import ALL_ROWS


class Placement(Protocol):
    """How tensors lie in this process: whole, or some rows of each (of the first dimension).

    The tensors it is asked about are a module's own: on the meta device before loading, filled afterwards.
    """

    def prepare(self, component: str, module: nn.Module) -> None:
        """Divide the module, which is on the meta device."""

    def rows(self, tensor: Tensor) -> slice:
        """The rows of it that are held here."""

    def assemble(self, held: Tensor, like: Tensor) -> Tensor:
        """What a module takes in the place of `like`, made of the rows that are held here."""

    def local(self, tensor: Tensor) -> Tensor:
        """The rows that are held here, to be read and changed in place."""

    def released(self, names: Sequence[str]) -> None:
        """The components of these names were dropped: their memory can be had again when this returns."""


class Whole:
    """Every process holds everything."""

    def prepare(self, component: str, module: nn.Module) -> None:
        pass

    def rows(self, tensor: Tensor) -> slice:
        return ALL_ROWS

    def assemble(self, held: Tensor, like: Tensor) -> Tensor:
        return held

    def local(self, tensor: Tensor) -> Tensor:
        return tensor

    def released(self, names: Sequence[str]) -> None:
        pass


WHOLE = Whole()
