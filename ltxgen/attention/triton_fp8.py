"""Attention whose products run on the fp8 units of NVIDIA GPUs, by kernels of our own. An approximation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ltxgen.attention.protocol import HALF, DeviceFacts, LseBackend, Needs, Package
from ltxgen.registry import register


@register("attention", "triton_fp8")
@dataclass(frozen=True)
class TritonFp8(LseBackend):
    """Queries, keys, values and softmax weights in e4m3, sums and softmax in fp32: about 5 % off in relative L2."""

    needs = Needs(cuda=True, first=(8, 9), dtypes=HALF, package=Package("triton", "it comes with torch's CUDA builds"))
    takes_masks = False
    head_dims = range(16, 129, 16)
    approximates = "queries, keys, values and softmax weights are rounded to fp8 (e4m3)"

    def available(self, device: DeviceFacts, dtype: torch.dtype, *, importing: bool = True) -> str | None:
        if device.type == "cuda" and torch.version.hip is not None:
            return "it runs on NVIDIA GPUs only"
        return super().available(device, dtype, importing=importing)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        assert mask is None, "triton_fp8 was given a mask"
        from ltxgen.attention.fp8_kernels import attention  # Triton comes with torch's CUDA builds only

        return attention(q, k, v)

    def with_lse(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        assert mask is None, "triton_fp8 was given a mask"
        from ltxgen.attention.fp8_kernels import attention

        lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
        return attention(q, k, v, lse), lse
