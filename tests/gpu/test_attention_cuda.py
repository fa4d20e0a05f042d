"""Attention backends on a CUDA device against the formula in float64. Needs an Ampere or newer GPU and 2 GB of it.

Tolerances: in 16 bits a fused kernel rounds the softmax weights before they meet the values, and its result. The same
two roundings, applied to the float64 computation, give the error that is due (`due_error`, about 2.3e-3 in bfloat16); a
backend may have twice that. float32 gets 1e-5. A backend that declares an approximation gets what it declares.

B batch, H heads, Tq query tokens, Tk key tokens, D head dim
"""

from __future__ import annotations

import math

import pytest
import torch

from ltxgen import registry
from ltxgen.attention import DeviceFacts, LseBackend, RoleSpec
from ltxgen.attention.auto import AutoConfig
from ltxgen.attention.choice import Side, choose, role_specs
from ltxgen.attention.protocol import backend
from ltxgen.parallel.ring import merge

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

KINDS = [kind for kind in registry.kinds("attention") if kind != "auto"]
# Queries, keys, values and weights in 8 bits, on inputs without structure: each rounds by 2.6e-2 of itself. A score of
# unit variance is off by 4e-2 then, and no log-sum-exp of scores by more than five times that.
ROUNDED_ERROR, ROUNDED_LSE_ERROR = 8e-2, 2e-1
# (H, Tq, Tk, D): video self and text, audio self and text, both directions between them, and odd lengths.
SHAPES = [
    (8, 1536, 1536, 128),
    (8, 1536, 1024, 128),
    (8, 126, 126, 64),
    (8, 126, 1024, 64),
    (8, 1536, 126, 64),
    (8, 126, 1536, 64),
    (3, 77, 331, 128),
    (2, 33, 1001, 64),
]
# flex compiles for seconds at each shape: the longest and the oddest speak for the rest.
FLEX_SHAPES = (SHAPES[0], SHAPES[-1])
CASES = [(kind, shape) for kind in KINDS for shape in (FLEX_SHAPES if kind == "flex" else SHAPES)]
cases = pytest.mark.parametrize(
    ("kind", "shape"), CASES, ids=["-".join([kind, "x".join(map(str, shape))]) for kind, shape in CASES]
)
kinds = pytest.mark.parametrize("kind", KINDS)


def usable(kind, dtype=torch.bfloat16):
    attention = backend(kind)
    why = attention.available(DeviceFacts.of(torch.device("cuda", 0)), dtype)
    if why is not None:
        pytest.skip(f"{kind}: {why}")
    return attention


def inputs(shape, dtype):
    """As the model gives them: heads cut out of (B, T, H*D), so strided."""
    num_heads, q_tokens, k_tokens, head_dim = shape
    generator = torch.Generator("cuda").manual_seed(11)

    def draw(tokens):
        flat = torch.randn(2, tokens, num_heads * head_dim, generator=generator, device="cuda", dtype=torch.float32)
        return flat.to(dtype).unflatten(-1, (num_heads, head_dim)).transpose(1, 2)

    return draw(q_tokens), draw(k_tokens), draw(k_tokens)


def masks(shape, dtype):
    """Text padding, a whole matrix of strengths with hidden keys, and one for each head."""
    num_heads, q_tokens, k_tokens, _ = shape
    generator = torch.Generator("cuda").manual_seed(12)

    def draw(*size):
        strengths = torch.randn(*size, generator=generator, device="cuda", dtype=torch.float32).to(dtype)
        strengths[..., 1::3] = torch.finfo(dtype).min
        return strengths

    yield draw(2, 1, 1, k_tokens)
    yield draw(2, 1, q_tokens, k_tokens)
    yield draw(1, num_heads, q_tokens, k_tokens)


def exact(q, k, v, mask):
    """float64, and the same with the weights and the result rounded as a fused kernel rounds them."""
    scores = q.double() @ k.double().transpose(-2, -1) / math.sqrt(q.shape[-1])
    scores = scores if mask is None else scores + mask.double()
    weights = scores.softmax(-1)
    # Kernels round exp(score - maximum), and divide at the end.
    unscaled = (scores - scores.amax(-1, keepdim=True)).exp()
    rounded = (unscaled.to(q.dtype).double() @ v.double() / unscaled.sum(-1, keepdim=True)).to(q.dtype)
    return weights @ v.double(), scores.logsumexp(-1), rounded


def relative_l2(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def allowed(kind, dtype, due_error):
    if backend(kind).approximates:
        return ROUNDED_ERROR
    return 1e-5 if dtype == torch.float32 else 2 * due_error


def check(kind, out, wanted, rounded):
    due_error = relative_l2(rounded, wanted)
    error = relative_l2(out, wanted)
    print(f"{kind}: relative L2 {error:.2e}, due {due_error:.2e}")
    assert torch.isfinite(out).all()
    assert error <= allowed(kind, out.dtype, due_error), kind


@cases
def test_without_a_mask(kind, shape):
    attention = usable(kind)
    q, k, v = inputs(shape, torch.bfloat16)
    wanted, _, rounded = exact(q, k, v, None)
    with torch.inference_mode():
        out = attention(q, k, v, None)
    assert (out.dtype, out.shape) == (q.dtype, q.shape)
    check(kind, out, wanted, rounded)


@cases
def test_with_masks(kind, shape):
    attention = usable(kind)
    if not attention.takes_masks:
        pytest.skip(f"{kind} takes no masks")
    q, k, v = inputs(shape, torch.bfloat16)
    for mask in masks(shape, torch.bfloat16):
        wanted, _, rounded = exact(q, k, v, mask)
        with torch.inference_mode():
            check(kind, attention(q, k, v, mask), wanted, rounded)


@pytest.mark.parametrize("kind", ["reference", "sdpa", "sdpa_efficient", "flex", "xformers"])
def test_float32(kind):
    attention = usable(kind, torch.float32)
    q, k, v = inputs((3, 77, 331, 64), torch.float32)
    for mask in (None, *masks((3, 77, 331, 64), torch.float32)):
        wanted, _, rounded = exact(q, k, v, mask)
        with torch.inference_mode():
            check(kind, attention(q, k, v, mask), wanted, rounded)


@cases
def test_the_log_sum_exp(kind, shape):
    attention = usable(kind)
    if not isinstance(attention, LseBackend):
        pytest.skip(f"{kind} gives no log-sum-exp")
    q, k, v = inputs(shape, torch.bfloat16)
    for mask in (None, *masks(shape, torch.bfloat16)) if attention.takes_masks else (None,):
        wanted, wanted_lse, rounded = exact(q, k, v, mask)
        with torch.inference_mode():
            out, lse = attention.with_lse(q, k, v, mask)
        check(kind, out, wanted, rounded)
        assert (lse.dtype, lse.shape) == (torch.float32, q.shape[:3])
        tolerance = ROUNDED_LSE_ERROR if attention.approximates else 1e-3  # scores are summed in float32
        torch.testing.assert_close(lse.double(), wanted_lse, rtol=0, atol=tolerance)


@kinds
def test_two_parts_of_the_keys_merge_into_the_whole(kind):
    attention = usable(kind)
    if not isinstance(attention, LseBackend):
        pytest.skip(f"{kind} gives no log-sum-exp")
    shape = (4, 200, 331, 128)
    q, k, v = inputs(shape, torch.bfloat16)
    for mask in (None, *masks(shape, torch.bfloat16)) if attention.takes_masks else (None,):
        wanted, _, rounded = exact(q, k, v, mask)
        with torch.inference_mode():
            parts = [
                attention.with_lse(q, k[:, :, keys], v[:, :, keys], None if mask is None else mask[..., keys])
                for keys in (slice(None, 100), slice(100, None))
            ]
            out, _ = merge(*parts[0], *parts[1])
        assert out.dtype == torch.float32
        check(kind, out.bfloat16(), wanted, rounded)


@kinds
@pytest.mark.parametrize("hidden", [-math.inf, torch.finfo(torch.bfloat16).min], ids=["inf", "min"])
def test_a_query_that_sees_no_key_of_a_part_takes_all_from_the_other(kind, hidden):
    attention = usable(kind)
    if not (isinstance(attention, LseBackend) and attention.takes_masks):
        pytest.skip(f"{kind} gives no log-sum-exp under a mask")
    q, k, v = inputs((4, 64, 128, 64), torch.bfloat16)
    mask = torch.zeros(2, 1, 64, 128, device="cuda", dtype=torch.bfloat16)
    mask[:, :, 5, :64] = hidden
    with torch.inference_mode():
        first = attention.with_lse(q, k[:, :, :64], v[:, :, :64], mask[..., :64])
        second = attention.with_lse(q, k[:, :, 64:], v[:, :, 64:], mask[..., 64:])
        out, _ = merge(*first, *second)
    assert (first[1][:, :, 5] == -math.inf).all()
    wanted, _, rounded = exact(q, k, v, mask)
    check(kind, out.bfloat16(), wanted, rounded)


@kinds
def test_backends_run_inside_torch_compile(kind):
    attention = usable(kind)
    q, k, v = inputs((4, 200, 331, 64), torch.bfloat16)
    torch.compiler.reset()  # so that each kind counts as the first
    compiled = torch.compile(lambda q, k, v: attention(2 * q, k, v, None))
    wanted, _, rounded = exact(2 * q, k, v, None)
    with torch.inference_mode():
        check(kind, compiled(q, k, v), wanted, rounded)


def test_auto_serves_every_role_here():
    device = DeviceFacts.of(torch.device("cuda", 0))
    specs = role_specs(Side(128, 1536), Side(64, 126), 1024)
    plan = choose(AutoConfig(), device, torch.bfloat16, specs)
    print("\n".join(plan.lines()))
    assert plan.problems == ()
    for spec, choice in zip(specs, plan.choices, strict=True):
        assert spec.head_dim is not None
        assert spec.q_tokens is not None
        assert spec.k_tokens is not None
        shape = (8, spec.q_tokens, spec.k_tokens, spec.head_dim)
        q, k, v = inputs(shape, torch.bfloat16)
        for mask in (None, *masks(shape, torch.bfloat16)):
            wanted, _, rounded = exact(q, k, v, mask)
            with torch.inference_mode():
                out = getattr(plan.functions, choice.role)(q, k, v, mask)
            check(choice.kind if mask is None else choice.masked, out, wanted, rounded)


def test_hopper_takes_more_than_torchs_default():
    device = DeviceFacts.of(torch.device("cuda", 0))
    if device.capability[0] != 9:
        pytest.skip("needs a Hopper GPU")
    plan = choose(AutoConfig(), device, torch.bfloat16)
    assert plan.choices[0].kind in ("flash4", "flash3", "sdpa_cudnn")


@kinds
def test_what_is_missing_is_refused_by_name(kind):
    device = DeviceFacts.of(torch.device("cuda", 0))
    why = backend(kind).available(device, torch.bfloat16)
    plan = choose(registry.config_of("attention", kind)(), device, torch.bfloat16)
    if why is None:
        assert plan.problems == ()
    else:
        (problem,) = plan.problems
        assert problem.path == "attention"
        assert why in problem.message


def test_inputs_that_a_kernel_does_not_take_are_an_error_and_no_other_kernel():
    attention = usable("sdpa_cudnn")
    assert attention.supports(RoleSpec("audio_self", head_dim=12)) is not None
    q, k, v = inputs((2, 8, 8, 12), torch.bfloat16)
    with pytest.warns(UserWarning, match="head_dim"), pytest.raises(RuntimeError, match="No available kernel"):
        attention(q, k, v, None)
