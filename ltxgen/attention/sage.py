"""SageAttention 2: 8-bit queries and keys (Zhang et al. 2024, arXiv:2411.10958). An approximation, never a default."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from ltxgen.attention.protocol import HALF, AttentionBackend, DeviceFacts, Needs, Package
from ltxgen.registry import register

# What `sageattn` has a kernel for.
_CAPABILITIES = frozenset({(8, 0), (8, 6), (8, 9), (9, 0), (12, 0)})


@register("attention", "sage")
@dataclass(frozen=True)
class Sage(AttentionBackend):
    """`sageattn`: queries and keys in int8, values in fp8 (fp16 on Ampere)."""

    needs = Needs(
        cuda=True,
        first=(8, 0),
        last=(12, 0),
        dtypes=HALF,
        package=Package("sageattention", "built from github.com/thu-ml/SageAttention, version 2"),
    )
    takes_masks = False
    head_dims = range(1, 129)
    approximates = "queries and keys are rounded to 8 bits, values to 8 or 16"

    def available(self, device: DeviceFacts, dtype: torch.dtype, *, importing: bool = True) -> str | None:
        unmet = super().available(device, dtype, importing=importing)
        if unmet is not None:
            return unmet
        if device.capability not in _CAPABILITIES:
            return "it has no kernel for compute capability {}.{}".format(*device.capability)
        installed = _version()
        if installed.startswith(("0.", "1.")):
            return f"sageattention {installed} overwrites the keys it is given; version 2 is needed"
        return None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        assert mask is None, "sage was given a mask"
        from sageattention import sageattn

        return sageattn(q, k, v, tensor_layout="HND", is_causal=False)


def _version() -> str:
    try:
        return version("sageattention")
    except PackageNotFoundError:
        return "unknown"
