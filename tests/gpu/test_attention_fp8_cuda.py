"""Our fp8 attention on a CUDA device against the formula in float64. Needs an Ada, Hopper or newer GPU.

What is due: the formula in float64 on e4m3 queries, keys and values, rounded here in torch, with the weights rounded
below each query's largest score. The kernel rounds them below the largest score so far, so it has other errors of the
same size: it may be as far from the formula as that, and a fifth further.

B batch, H heads, Tq query tokens, Tk key tokens, D head dim
"""

from __future__ import annotations

import math

import pytest
import torch

from ltxgen.attention import DeviceFacts
from ltxgen.attention.protocol import backend
from ltxgen.parallel.ring import merge

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

FLOAT8 = torch.float8_e4m3fn
# (B, H, Tq, Tk, D): whole blocks, all but whole ones, fewer keys than a block and one, and heads that get padded.
SHAPES = [
    (2, 3, 512, 512, 128),
    (1, 2, 300, 1024, 128),
    (2, 3, 77, 331, 128),
    (1, 4, 129, 257, 64),
    (2, 2, 100, 50, 64),
    (1, 2, 33, 1, 128),
    (1, 3, 140, 400, 96),
    (1, 2, 65, 200, 16),
]


@pytest.fixture
def attention():
    """The backend, where it runs."""
    fp8 = backend("triton_fp8")
    why = fp8.available(DeviceFacts.of(torch.device("cuda", 0)), torch.bfloat16)
    if why is not None:
        pytest.skip(why)
    return fp8


@pytest.fixture(params=["TILES", "SMALL_TILES"])
def tiles(request, monkeypatch):
    """With the tiles of either size, whatever GPU this is."""
    from ltxgen.attention import fp8_kernels

    tiles = getattr(fp8_kernels, request.param)
    if tiles == fp8_kernels.TILES != fp8_kernels.tiles_for(torch.device("cuda", 0)):
        pytest.skip("they need 227 KiB of shared memory")
    monkeypatch.setattr(fp8_kernels, "tiles_for", lambda device: tiles)


def inputs(shape, dtype=torch.bfloat16, seed=11):
    """Heads cut out of (B, T, H*D), so strided, as the model gives them."""
    B, H, Tq, Tk, D = shape
    generator = torch.Generator("cuda").manual_seed(seed)

    def draw(tokens):
        flat = torch.randn(B, tokens, H * D, generator=generator, device="cuda", dtype=torch.float32)
        return flat.to(dtype).unflatten(-1, (H, D)).transpose(1, 2)

    return draw(Tq), draw(Tk), draw(Tk)


def formula(q, k, v, largest=None):
    """float64; with `largest`, weights below it are rounded to e4m3 before they meet the values."""
    scores = q.double() @ k.double().mT / math.sqrt(q.shape[-1])
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    rounded = weights if largest is None else (largest * weights).to(FLOAT8).double() / largest
    return rounded @ v.double() / weights.sum(-1, keepdim=True)


def float8(x):
    scale = x.double().abs().amax() / 448
    return (x.double() / scale).to(FLOAT8).double() * scale


def relative_l2(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def check(out, q, k, v):
    wanted = formula(q, k, v)
    due = relative_l2(formula(*map(float8, (q, k, v)), largest=256), wanted)
    error = relative_l2(out, wanted)
    print(f"relative L2 {error:.2e}, due {due:.2e}")
    assert torch.isfinite(out).all()
    assert error <= 1.2 * due


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_the_formula(attention, tiles, shape, dtype):
    q, k, v = inputs(shape, dtype)
    out = attention(q, k, v, None)
    assert (out.dtype, out.shape) == (dtype, q.shape)
    assert out.transpose(1, 2).is_contiguous()
    check(out, q, k, v)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_inputs_that_are_e4m3_leave_the_rounding_of_weights(attention, shape):
    # Small whole numbers, and in each block one that is the largest: every scale is 2^-6, and nothing is rounded.
    q, k, v = (x.mul(2).round().clamp(-7, 7) for x in inputs(shape))
    for x in (q, k, v):
        x[:, :, ::16, 0] = 7
    q /= 4
    wanted = formula(q, k, v)
    due = relative_l2(formula(q, k, v, largest=256), wanted)
    out, lse = attention.with_lse(q, k, v, None)
    assert relative_l2(out, wanted) <= 1.2 * due + 2e-3  # and the rounding of the result
    scores = q.double() @ k.double().mT / math.sqrt(q.shape[-1])
    torch.testing.assert_close(lse.double(), scores.logsumexp(-1), rtol=0, atol=1e-3)


def test_blocks_of_very_different_values(attention):
    shape = (1, 2, 96, 1000, 128)
    q, k, v = inputs(shape)
    sizes = torch.logspace(-6, 3, 1000, device="cuda")[:, None].to(v.dtype)
    check(attention(q, k, v * sizes, None), q, k, v * sizes)
    # The smallest do count in the sum of the weights: ten keys of a thousand have all that there is.
    few = torch.zeros_like(v)
    few[:, :, 990:] = v[:, :, 990:]
    check(attention(q, k, few, None), q, k, few)
    assert (attention(q, k, torch.zeros_like(v), None) == 0).all()


def test_scores_far_from_zero(attention):
    q, k, v = inputs((1, 2, 96, 600, 128))
    k = k + 40 * q.mean(dim=2, keepdim=True).sign()  # the same for all keys: a thousand and more in each score
    q = q.abs() * q.mean(dim=2, keepdim=True).sign()
    out = attention(q, k, v, None)
    assert torch.isfinite(out).all()
    assert out.abs().max() <= v.abs().max() * 1.1  # a mean of the values, whatever its weights


def test_any_strides(attention):
    q, k, v = inputs((2, 3, 77, 331, 64))
    wanted = attention(q, k, v, None)
    for lay in (
        torch.Tensor.contiguous,
        lambda x: x.mT.contiguous().mT,
        lambda x: x.repeat_interleave(2, dim=2)[:, :, ::2],
    ):
        assert torch.equal(attention(lay(q), lay(k), lay(v), None), wanted)
    one = v[:, :, :1].expand_as(v)  # of all tokens the same
    torch.testing.assert_close(attention(q, k, one, None), one[:, :, :77], rtol=2**-3, atol=0)


def test_parts_of_the_keys_merge_into_the_whole(attention):
    q, k, v = inputs((1, 3, 200, 700, 128))
    parts = [attention.with_lse(q, k[:, :, keys], v[:, :, keys], None) for keys in (slice(300), slice(300, None))]
    out, _ = merge(*parts[0], *parts[1])
    check(out, q, k, v)


def test_it_can_be_recorded_as_a_cuda_graph(attention):
    shape = (2, 4, 333, 517, 128)
    q, k, v = inputs(shape)
    attention(q, k, v, None)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attention(q, k, v, None)
    for seed in (1, 2):
        others = inputs(shape, seed=seed)
        for held, other in zip((q, k, v), others, strict=True):
            held.copy_(other)
        graph.replay()
        assert torch.equal(out, attention(*others, None))
