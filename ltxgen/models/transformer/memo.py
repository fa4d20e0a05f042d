"""Results that outlive a step: remembered for as long as the tensor that they come from."""

from collections.abc import Callable, Hashable
from typing import TypeVar

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

T = TypeVar("T")


class TensorMemo:
    """What was computed from a tensor, found again by the tensor itself (not its values), gone when that is gone.

    For tensors that nobody writes to: positions and masks, which stay the same from step to step.
    """

    def __init__(self) -> None:
        self._results: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def __call__(self, tensor: Tensor, key: Hashable, compute: Callable[[], T]) -> T:
        """`compute()`, or what it gave before for the same `tensor` and `key`."""
        results = self._results.setdefault(tensor, {})
        if key not in results:
            results[key] = compute()
        return results[key]
