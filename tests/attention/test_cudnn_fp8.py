"""cuDNN's attention in fp8 without a GPU: stand-ins of the frontend's graphs, which compute in plain torch, and of our
kernels. What is tested is the graph that is asked for, and what is made of its result.

B batch, H heads, Tq query tokens, Tk key tokens, D head dim
"""

from __future__ import annotations

import contextlib
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor

from ltxgen.attention import cudnn_fp8
from ltxgen.attention.protocol import backend

FLOAT8 = torch.float8_e4m3fn
NUMBERS = ("descale_q", "descale_k", "descale_v", "scale_o", "descale_s", "scale_s", "amax_s", "amax_o")


class StandInTensor(SimpleNamespace):
    """A tensor of a graph: what the frontend is told of it, as attributes."""

    def __getattr__(self, name):
        if not name.startswith("set_"):
            raise AttributeError(name)

        def store(value):
            setattr(self, name.removeprefix("set_"), value)
            return self

        return store

    def of(self, fed: dict[int, Tensor]) -> Tensor:
        x = fed[self.uid]
        assert x.dtype == {"e4m3": FLOAT8, "fp32": torch.float32}[self.data_type]
        return x.as_strided(self.dim, self.stride)


class StandInGraph:
    """`cudnn.pygraph` (frontend 1.20) for one `sdpa_fp8`."""

    def __init__(self, handle=None, io_data_type=None, intermediate_data_type=None, compute_data_type=None):
        assert (io_data_type, intermediate_data_type, compute_data_type) == ("e4m3", "fp32", "fp32")
        self.handle = handle

    def tensor(self, dim, stride, data_type, name="", uid=-1):
        return StandInTensor(dim=dim, stride=stride, data_type=data_type, uid=uid)

    def sdpa_fp8(self, q, k, v, *, attn_scale, generate_stats, **scales):
        assert set(scales) == {"descale_q", "descale_k", "descale_v", "descale_s", "scale_s", "scale_o"}
        assert generate_stats is False
        self.inputs, self.attn_scale = {"q": q, "k": k, "v": v, **scales}, attn_scale
        self.outputs = StandInTensor(), StandInTensor(), StandInTensor()
        out, amax_s, amax_o = self.outputs
        return out, None, amax_s, amax_o

    def build(self, modes):
        assert modes == ["A", "FALLBACK"]
        described = (*self.inputs.values(), *self.outputs)
        assert len({each.uid for each in described}) == len(described)
        assert all(each.output for each in self.outputs)

    def get_workspace_size(self):
        return 48

    def execute(self, fed, workspace, handle=None):
        assert handle is self.handle
        assert handle.stream == 7
        assert workspace.numel() == 48
        q, k, v, *_ = (x.of(fed).float() for x in self.inputs.values())
        scale = {name: x.of(fed) for name, x in self.inputs.items() if "scale" in name}
        scores = q @ k.transpose(-1, -2) * self.attn_scale * scale["descale_q"] * scale["descale_k"]
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        low = (weights * scale["scale_s"]).to(FLOAT8).float() * scale["descale_s"]
        out, amax_s, amax_o = (x.of(fed) for x in self.outputs)
        plain = low @ v * scale["descale_v"] / weights.sum(-1, keepdim=True)
        out.copy_((plain * scale["scale_o"]).to(FLOAT8))
        amax_s.fill_(weights.max())
        amax_o.fill_(plain.abs().max())


@pytest.fixture
def graphs(monkeypatch) -> list[StandInGraph]:
    """Those that are made while stand-ins are installed."""
    made: list[StandInGraph] = []

    def pygraph(**settings):
        made.append(StandInGraph(**settings))
        return made[-1]

    cudnn = ModuleType("cudnn")
    cudnn.data_type = SimpleNamespace(FP8_E4M3="e4m3", FLOAT="fp32")
    cudnn.heur_mode = SimpleNamespace(A="A", FALLBACK="FALLBACK")
    cudnn.pygraph = pygraph
    cudnn.create_handle = lambda: SimpleNamespace(stream=0)
    cudnn.set_stream = lambda handle, stream: setattr(handle, "stream", stream)
    kernels = ModuleType("ltxgen.attention.kernels")
    kernels.rounded, kernels.unrounded = rounded, unrounded
    monkeypatch.setitem(sys.modules, "cudnn", cudnn)
    monkeypatch.setitem(sys.modules, "ltxgen.attention.kernels", kernels)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=7))
    for remembered in (cudnn_fp8._plan, cudnn_fp8._handle):
        remembered.cache_clear()
    yield made
    for remembered in (cudnn_fp8._plan, cudnn_fp8._handle):
        remembered.cache_clear()


def rounded(q: Tensor, k: Tensor, v: Tensor) -> SimpleNamespace:
    numbers = torch.zeros(len(NUMBERS), 4)
    values = []
    for number, x in enumerate((q, k, v)):
        numbers[number, 0] = x.float().abs().max() / 448
        values.append((x.float() / numbers[number, 0]).to(FLOAT8).transpose(1, 2).contiguous())
    numbers[3:6, 0] = torch.stack([1 / numbers[2, 0], torch.tensor(1 / 256), torch.tensor(256.0)])
    named = dict(zip(NUMBERS, numbers.unbind(), strict=True))
    return SimpleNamespace(
        **dict(zip("qkv", values, strict=True)), numbers=SimpleNamespace(**named, _asdict=lambda: named)
    )


def unrounded(out: Tensor, descale: Tensor, dtype: torch.dtype) -> Tensor:
    assert out.is_contiguous()
    return (out.float() * descale[0]).to(dtype)


def inputs(B: int, H: int, Tq: int, Tk: int, D: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(B, H, T, D, generator=generator).bfloat16() * size for T, size in ((Tq, 2), (Tk, 0.5), (Tk, 9))]


@pytest.mark.parametrize("shape", [(1, 2, 5, 7, 16), (2, 3, 33, 20, 64), (2, 1, 1, 9, 48)], ids=str)
def test_the_graph_computes_attention(shape, graphs):
    q, k, v = inputs(*shape)
    out = backend("cudnn_fp8")(q, k, v, None)
    wanted = backend("reference")(q.double(), k.double(), v.double(), None)
    assert (out.shape, out.dtype) == (q.shape, q.dtype)
    assert out.transpose(1, 2).is_contiguous()
    # Scores, weights, values and result each lose up to 2^-4 of a value in e4m3, by chance in either direction.
    assert 5e-3 < ((out.double() - wanted).norm() / wanted.norm()).item() < 2**-3


def test_a_graph_is_made_once_for_a_shape(graphs):
    attention = backend("cudnn_fp8")
    for shape in ((1, 2, 5, 7, 16), (1, 2, 5, 7, 16), (1, 2, 7, 5, 16), (2, 2, 5, 7, 16), (1, 2, 5, 7, 16)):
        attention(*inputs(*shape), None)
    assert len(graphs) == 3
    assert len({id(graph.handle) for graph in graphs}) == 1
