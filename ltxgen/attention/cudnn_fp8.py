"""cuDNN's attention in fp8, through NVIDIA's frontend to it. An approximation, never a default.

Queries, keys and values are rounded to e4m3, each tensor with one scale, which is found on the device at each call; so
are the softmax weights and, as Hopper's kernel gives nothing else, the result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ltxgen.attention.protocol import HALF, AttentionBackend, DeviceFacts, Needs, Package
from ltxgen.registry import register

_TRITON = Package("triton", "it comes with torch's CUDA builds")


@register("attention", "cudnn_fp8")
@dataclass(frozen=True)
class CudnnFp8(AttentionBackend):
    """Its limits are those of the frontend's `sdpa_fp8` (sdpa_support_surface.h)."""

    needs = Needs(
        cuda=True,
        first=(9, 0),
        last=(10, 3),
        dtypes=HALF,
        package=Package("cudnn", "pip install nvidia-cudnn-frontend==1.20.0"),
    )
    takes_masks = False
    head_dims = range(16, 129, 16)  # Hopper takes up to 256, Blackwell not
    approximates = "queries, keys, values, softmax weights and results are rounded to 8 bits (e4m3)"

    def available(self, device: DeviceFacts, dtype: torch.dtype, *, importing: bool = True) -> str | None:
        return super().available(device, dtype, importing=importing) or _TRITON.missing()

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        assert mask is None, "cudnn_fp8 was given a mask"
        from ltxgen.attention.kernels import rounded, unrounded

        low = rounded(q, k, v)
        out = torch.empty_like(low.q)
        B, H, Tq, D = q.shape
        plan = _plan(Shape(B, H, Tq, k.shape[2], D), q.device)
        plan.run({"q": low.q, "k": low.k, "v": low.v, "o": out, **low.numbers._asdict()})
        return unrounded(out, low.numbers.descale_v, q.dtype).transpose(1, 2)


class Shape(NamedTuple):
    batch: int
    num_heads: int
    q_tokens: int
    k_tokens: int
    head_dim: int


_NUMBERS = ("descale_q", "descale_k", "descale_v", "descale_s", "scale_s", "scale_o")
_NAMES = ("q", "k", "v", "o", *_NUMBERS, "amax_s", "amax_o")
_UIDS = {name: number for number, name in enumerate(_NAMES, start=1)}
Layout = dict[str, tuple[int, ...]]
_ONE_NUMBER: Layout = {"dim": (1, 1, 1, 1), "stride": (1, 1, 1, 1)}


@dataclass(frozen=True)
class Plan:
    """A kernel of cuDNN's for one shape on one device, and how many bytes it works in."""

    graph: Any
    num_bytes: int
    device: torch.device

    def run(self, tensors: dict[str, Tensor]) -> None:
        """Of what `_NAMES` names, in torch's current stream. q, k, v and o are contiguous in the order (B,T,H,D)."""
        import cudnn

        handle = _handle(self.device)
        cudnn.set_stream(handle, torch.cuda.current_stream(self.device).cuda_stream)
        workspace = torch.empty(self.num_bytes, dtype=torch.uint8, device=self.device)
        self.graph.execute({_UIDS[name]: x for name, x in tensors.items()}, workspace, handle=handle)


@cache
def _plan(shape: Shape, device: torch.device) -> Plan:
    import cudnn

    fp8, fp32 = cudnn.data_type.FP8_E4M3, cudnn.data_type.FLOAT
    with torch.cuda.device(device):
        graph = cudnn.pygraph(
            handle=_handle(device), io_data_type=fp8, intermediate_data_type=fp32, compute_data_type=fp32
        )
        B, H, Tq, Tk, D = shape

        def heads(tokens: int) -> Layout:
            return {"dim": (B, H, tokens, D), "stride": (tokens * H * D, D, H * D, 1)}

        def tensor(name: str, layout: Layout, dtype: Any) -> Any:
            return graph.tensor(**layout, data_type=dtype, name=name, uid=_UIDS[name])

        out, _, amax_s, amax_o = graph.sdpa_fp8(
            q=tensor("q", heads(Tq), fp8),
            k=tensor("k", heads(Tk), fp8),
            v=tensor("v", heads(Tk), fp8),
            **{name: tensor(name, _ONE_NUMBER, fp32) for name in _NUMBERS},
            attn_scale=1 / math.sqrt(D),
            generate_stats=False,
        )
        for name, result, layout, dtype in (
            ("o", out, heads(Tq), fp8),
            ("amax_s", amax_s, _ONE_NUMBER, fp32),
            ("amax_o", amax_o, _ONE_NUMBER, fp32),
        ):
            result.set_output(True).set_uid(_UIDS[name]).set_data_type(dtype)
            result.set_dim(layout["dim"]).set_stride(layout["stride"])
        graph.build([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    return Plan(graph, graph.get_workspace_size(), device)


@cache
def _handle(device: torch.device) -> Any:
    import cudnn

    with torch.cuda.device(device):
        return cudnn.create_handle()
