"""Which part of a component's tensors this process holds, and where."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor, nn

from ltxgen.artifacts.safetensors_file import ALL_ROWS

Change = Callable[[Tensor], object]
"""Changes a tensor in place."""


class ReadRows(Protocol):
    """Reads a stored tensor, or rows of it, to the device that computes; with `move=False` it is where the source has
    it."""

    def __call__(self, rows: slice = ALL_ROWS, *, move: bool = True) -> Tensor: ...


class Placement(Protocol):
    """How tensors lie in this process: whole, or some rows of each (of the first dimension), on the device or not.

    The tensors it is asked about are a module's own: on the meta device before loading, filled afterwards. `place` may
    be called in a thread of its own for each component, all else in one.
    """

    def prepare(self, component: str, module: nn.Module) -> None:
        """Divide the module, which is on the meta device."""

    def reads(self, like: Tensor) -> slice:
        """The rows that `place` will read."""

    def place(self, like: Tensor, read: ReadRows) -> Tensor:
        """What a module takes in the place of `like`, filled from `read`."""

    def rows(self, tensor: Tensor) -> slice:
        """The rows of it that are held here."""

    def local(self, tensor: Tensor) -> Tensor:
        """The rows that are held here, to be read."""

    def change(self, tensor: Tensor, change: Change, *, anew: bool = False) -> None:
        """Let `change` work on the rows that are held here, on the device that computes.

        Where weights are read whenever they are used, it is called each time, after earlier changes of this tensor;
        with `anew`, which says that it gives the tensor its stored content back, these end instead.
        """

    def set_aside(self, names: Sequence[str]) -> None:
        """The components of these names won't be used for a while."""

    def released(self, names: Sequence[str]) -> None:
        """The components of these names were dropped: their memory can be had again when this returns."""


class Whole:
    """Every process holds everything, on the device."""

    def prepare(self, component: str, module: nn.Module) -> None:
        pass

    def reads(self, like: Tensor) -> slice:
        return ALL_ROWS

    def place(self, like: Tensor, read: ReadRows) -> Tensor:
        return read()

    def rows(self, tensor: Tensor) -> slice:
        return ALL_ROWS

    def local(self, tensor: Tensor) -> Tensor:
        return tensor

    def change(self, tensor: Tensor, change: Change, *, anew: bool = False) -> None:
        change(tensor)

    def set_aside(self, names: Sequence[str]) -> None:
        pass

    def released(self, names: Sequence[str]) -> None:
        pass


WHOLE = Whole()
