"""What an attention backend is, what it needs, and what is known of the role that it is to serve.

Shapes: B batch, H heads, Tq query tokens, Tk key tokens, D head dim.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib.machinery import PathFinder
from importlib.util import find_spec
from typing import ClassVar, Self

import torch
from torch import Tensor

from ltxgen import registry
from ltxgen.models.transformer.attention import AttentionByRole

AttentionFunction = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
ROLES = tuple(field.name for field in fields(AttentionByRole))
AUTO = "auto"
FALLBACK = "sdpa"  # runs anywhere, takes masks and gives log-sum-exps
HALF = frozenset({torch.bfloat16, torch.float16})

Capability = tuple[int, int]


@dataclass(frozen=True)
class DeviceFacts:
    """What a choice depends on of a device: `cpu`, or `cuda` with its compute capability."""

    type: str
    capability: Capability = (0, 0)

    @classmethod
    def of(cls, device: torch.device) -> Self:
        capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
        return cls(device.type, capability)


@dataclass(frozen=True)
class RoleSpec:
    """What is known of one role before it runs; None where it isn't.

    `has_mask`: its usual calls come with a mask. `needs_lse`: log-sum-exps are asked for, as ring attention does.
    """

    role: str
    has_mask: bool = False
    head_dim: int | None = None
    q_tokens: int | None = None
    k_tokens: int | None = None
    needs_lse: bool = False


@dataclass(frozen=True)
class Package:
    """An optional package: the module that is imported, and how to get it."""

    module: str
    source: str

    def missing(self) -> str | None:
        """Why it can't be imported as far as can be told without importing it."""
        return None if _is_found(self.module) else f"{self.module} is not installed ({self.source})"

    def broken(self) -> str | None:
        """Why importing it fails: built for another torch, CUDA or Python, or lacking something itself."""
        try:
            importlib.import_module(self.module)
        except Exception as error:  # a package's own import can fail in any way; the reason goes into the plan
            lines = str(error).strip().splitlines() or [""]
            return f"{self.module} is installed and does not import: {type(error).__name__}: {lines[0]}"
        return None


@dataclass(frozen=True)
class Needs:
    """Device, compute capabilities (first and last, inclusive), dtypes and package that a backend runs with."""

    cuda: bool = False
    first: Capability = (0, 0)
    last: Capability = (99, 9)
    dtypes: frozenset[torch.dtype] | None = None
    package: Package | None = None

    def unmet(self, device: DeviceFacts, dtype: torch.dtype, *, importing: bool = True) -> str | None:
        """Everything that is missing, or None. The package is imported only where all else is met, if at all."""
        missing = []
        if self.cuda and device.type != "cuda":
            missing.append("it runs on CUDA GPUs only")
        if device.type == "cuda" and not self.first <= device.capability <= self.last:
            missing.append(
                f"it needs compute capability {self._range()}, and this GPU's is {_dotted(device.capability)}"
            )
        if self.dtypes is not None and dtype not in self.dtypes:
            known = " or ".join(sorted(map(_name, self.dtypes)))
            missing.append(f"it computes in {known}, not in {_name(dtype)}")
        if self.package is not None:
            lacking = self.package.missing()
            if lacking is None and importing and not missing:
                lacking = self.package.broken()
            missing += [lacking] if lacking else []
        return "; ".join(missing) or None

    def _range(self) -> str:
        if self.last[0] > 12:
            return f"{_dotted(self.first)} or higher"
        return _dotted(self.first) if self.first == self.last else f"{_dotted(self.first)} to {_dotted(self.last)}"


@dataclass(frozen=True)
class AttentionBackend(ABC):
    """softmax(q kᵀ / sqrt(D) + mask) v for q (B,H,Tq,D), k and v (B,H,Tk,D) -> (B,H,Tq,D).

    `mask` is None or additive, in q's dtype and broadcastable to (B,H,Tq,Tk); a key is hidden by -inf or the dtype's
    minimum. A backend has nothing to choose, so it is the meaning of its YAML itself.
    """

    kind: ClassVar[str]  # its name, set by the registry
    needs: ClassVar[Needs] = Needs()
    takes_masks: ClassVar[bool] = True
    head_dims: ClassVar[range] = range(1, 1025)
    traceable: ClassVar[bool] = False  # whether torch.compile may look into it
    approximates: ClassVar[str] = ""  # what is given up, for a backend that does not compute the formula

    @abstractmethod
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor: ...

    def build(self) -> Self:
        return self

    def available(self, device: DeviceFacts, dtype: torch.dtype, *, importing: bool = True) -> str | None:
        """Why it can't run on `device` in `dtype`; None if it can. Its package is imported to know, if `importing`."""
        return self.needs.unmet(device, dtype, importing=importing)

    def supports(self, role: RoleSpec) -> str | None:
        """Why it can't serve `role`; None if it can."""
        if role.has_mask and not self.takes_masks:
            return "it takes no masks"
        return self.misfit(role)

    def misfit(self, role: RoleSpec) -> str | None:
        """Why it can't serve even the calls of `role` that come without a mask; None if it can."""
        dims = self.head_dims
        if role.head_dim is not None and role.head_dim not in dims:
            step = f"multiples of {dims.step}" if dims.step > 1 else "sizes"
            return f"it takes heads of {step} from {dims[0]} to {dims[-1]}, and these have {role.head_dim}"
        if role.needs_lse and not isinstance(self, LseBackend):
            return "it gives no log-sum-exp, which ring attention merges by"
        return None


class LseBackend(AttentionBackend):
    """A backend that can also say how much weight its keys had, so that parts of the keys can be merged."""

    @abstractmethod
    def with_lse(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The attention, and ln Σ exp(q kᵀ / sqrt(D) + mask) over the keys: (B,H,Tq), float32 (float64 for float64).

        A query whose keys are all hidden gets -inf and zeros.
        """


@dataclass(frozen=True)
class RoleAttention:
    """The function behind one role: calls with a mask go to a backend that takes masks."""

    unmasked: AttentionBackend
    masked: AttentionBackend

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return self._backend(mask)(q, k, v, mask)

    @property
    def traceable(self) -> bool:
        return self.unmasked.traceable and self.masked.traceable

    def with_lse(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """As `LseBackend.with_lse`; by the fallback where the backend has none and was not chosen with `needs_lse`."""
        serving = self._backend(mask)
        if not isinstance(serving, LseBackend):
            serving = backend(FALLBACK)
        assert isinstance(serving, LseBackend), f"{FALLBACK} gives log-sum-exps"
        return serving.with_lse(q, k, v, mask)

    def _backend(self, mask: Tensor | None) -> AttentionBackend:
        return self.unmasked if mask is None else self.masked


def blank_unseeing(out: Tensor, lse: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Zeros and -inf for queries whose keys `mask` hides all: kernels give them anything (0, inf, NaN)."""
    if mask is None:
        return out, lse
    unseeing = (mask <= torch.finfo(mask.dtype).min).all(dim=-1)
    unseeing = unseeing.reshape((1,) * (4 - mask.dim()) + unseeing.shape)
    return out.masked_fill(unseeing[..., None], 0), lse.masked_fill(unseeing, -torch.inf)


@dataclass(frozen=True)
class Choice:
    """The backend of one role, the one that its calls with a mask go to, why, and why not the others."""

    role: str
    kind: str
    masked: str
    why: str
    passed_over: tuple[tuple[str, str], ...] = ()


def backend(kind: str) -> AttentionBackend:
    """The backend called `kind`; KeyError if there is none."""
    built = registry.config_of("attention", kind)().build()
    assert isinstance(built, AttentionBackend), kind
    return built


def backend_kinds() -> tuple[str, ...]:
    """The names of all backends."""
    return tuple(kind for kind in registry.kinds("attention") if kind != AUTO)


def _is_found(module: str) -> bool:
    # `find_spec("a.b")` would import `a`, which for these packages loads CUDA libraries.
    parent, _, _ = module.rpartition(".")
    if not parent:
        return find_spec(module) is not None
    spec = find_spec(parent)
    return spec is not None and PathFinder.find_spec(module, spec.submodule_search_locations) is not None


def _dotted(capability: Capability) -> str:
    return f"{capability[0]}.{capability[1]}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
