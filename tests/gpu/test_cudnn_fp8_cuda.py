"""cuDNN's attention in fp8 on a CUDA device against the formula in float64. Needs a Hopper or Blackwell GPU.

Tolerances: the same roundings to e4m3 (of q, k, v, the softmax weights before they are divided, and the result),
applied to the float64 computation, give the error that is due: about 6e-2 on inputs without structure. The backend may
have a quarter more, for it sees a row's largest score block by block and rounds the weights by what it has seen.

B batch, H heads, Tq query tokens, Tk key tokens, D head dim
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ltxgen.attention import DeviceFacts
from ltxgen.attention.protocol import backend

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

MARGIN = 1.25
FLOAT8 = torch.float8_e4m3fn
# (B, H, Tq, Tk, D): video, audio, across; odd lengths, few tokens, sizes of heads that are no power of two.
SHAPES = [
    (1, 8, 1536, 1536, 128),
    (4, 8, 126, 126, 64),
    (2, 8, 1537, 126, 64),
    (2, 3, 77, 331, 128),
    (2, 2, 33, 1001, 64),
    (2, 3, 5, 7, 80),
]


@pytest.fixture(scope="module")
def attention():
    made = backend("cudnn_fp8")
    why = made.available(DeviceFacts.of(torch.device("cuda", 0)), torch.bfloat16)
    if why is not None:
        pytest.skip(f"cudnn_fp8: {why}")
    with torch.inference_mode():
        yield made


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor, Tensor]:
    """As the model gives them: heads cut out of (B, T, H*D), so strided. Of several magnitudes."""
    B, H, Tq, Tk, D = shape
    generator = torch.Generator("cuda").manual_seed(21)

    def draw(tokens: int, size: float) -> Tensor:
        flat = torch.randn(B, tokens, H * D, generator=generator, device="cuda") * size
        return flat.to(dtype).unflatten(-1, (H, D)).transpose(1, 2)

    return draw(Tq, 2.0), draw(Tk, 0.5), draw(Tk, 30.0)


def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q.double() @ k.double().transpose(-2, -1) / math.sqrt(q.shape[-1])
    return scores.softmax(-1) @ v.double()


def rounded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same with everything rounded that the kernel rounds."""
    q, k, v = (low(x, 448 / x.double().abs().amax()) for x in (q, k, v))
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    out = low(weights, 256) @ v / weights.sum(-1, keepdim=True)
    return low(out, 448 / v.abs().amax())


def low(x: Tensor, scale: Tensor | int) -> Tensor:
    return (x.double() * scale).float().to(FLOAT8).double() / scale


def relative_l2(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b).norm() / b.norm()).item()


def check(out: Tensor, q: Tensor, k: Tensor, v: Tensor) -> None:
    wanted = exact(q, k, v)
    error, due = relative_l2(out, wanted), relative_l2(rounded(q, k, v), wanted)
    print(f"relative L2 {error:.2e}, due {due:.2e}")
    assert (out.dtype, out.shape) == (q.dtype, q.shape)
    assert error <= MARGIN * due


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_error_is_that_of_its_roundings(attention, shape, dtype):
    q, k, v = inputs(shape, dtype)
    out = attention(q, k, v, None)
    check(out, q, k, v)
    assert out.transpose(1, 2).is_contiguous()  # as what follows reads it


def test_any_strides(attention):
    q, k, v = inputs((2, 3, 77, 331, 128))
    check(attention(q.contiguous(), k, v, None), q, k, v)
    q, k, v = (
        torch.randn(2, 331, 3 * 3 * 128, device="cuda").bfloat16().unflatten(-1, (3, 3, 128)).permute(2, 0, 3, 1, 4)
    )
    check(attention(q, k, v, None), q, k, v)  # of one tensor of all three
    k = torch.randn(2, 3, 128, 331, device="cuda").bfloat16().transpose(-1, -2)
    v = torch.randn(2, 3, 331, 131, device="cuda").bfloat16()[..., 3:]  # rows start anywhere
    check(attention(q, k, v, None), q, k, v)
    one = k[:1, :1].expand(2, 3, -1, -1)
    check(attention(q, one, v, None), q, one, v)


def test_scales_follow_the_values(attention):
    q, k, v = inputs((1, 2, 200, 300, 64))
    sizes = [2.0**exponent for exponent in (-20, 0, 20)]
    outs = [attention(q * size, k / size, v * size, None).double() / size for size in sizes]
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[2], outs[1])
    assert not attention(q, k, torch.zeros_like(v), None).any()


def test_what_is_no_number_is_not_hidden(attention):
    q, k, v = inputs((1, 2, 200, 300, 64))
    v[0, 1, 7, 3] = torch.nan
    assert attention(q, k, v, None)[0, 1, :, 3].isnan().all()


def test_a_graph_of_it_follows_the_values(attention):
    shape = (2, 4, 301, 203, 64)
    q, k, v = inputs(shape)
    other = [x.flip(0) * 3 for x in (q, k, v)]
    wanted = [attention(q, k, v, None), attention(*other, None)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        out = attention(q, k, v, None)
    graph.replay()
    assert torch.equal(out, wanted[0])
    for place, x in zip((q, k, v), other, strict=True):
        place.copy_(x)
    graph.replay()
    assert torch.equal(out, wanted[1])


def test_another_stream(attention):
    q, k, v = inputs((2, 8, 1536, 1536, 128))
    wanted = attention(q, k, v, None)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = q
        for _ in range(50):  # work that another stream would not wait for
            late = late.flip(0)
        out = attention(late, k, v, None)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(out, wanted)
