"""Linear layers in fp8: rounding and arithmetic against float64 made here, quality, and compiled."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from test_transformer import LTX23, build
from test_transformer_compilation import at
from test_transformer_passes import modalities, passes, relative_l2
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ltxgen.models.transformer import Transformer
from ltxgen.models.transformer.compilation import compile_blocks
from ltxgen.models.transformer.float8 import (
    FLOAT8,
    Float8Layers,
    Float8Linear,
    candidates,
    plain_rows,
    scaled_rows,
    use_float8,
)
from ltxgen.models.transformer.sharing import SharedSubexpressions
from ltxgen.runtime.environment import lacking_compiler

CPU = torch.device("cpu")


def e4m3(x: Tensor) -> Tensor:
    """The nearest e4m3 value, ties to even, in float64: 3 bits after the first, exponents from -6, largest 448."""
    x = x.double()
    exponent = torch.frexp(x).exponent - 1  # of the leading bit
    step = torch.exp2(exponent.clamp(min=-6).double() - 3)
    return (torch.round(x / step) * step).clamp(-448, 448)


def linear(num_in: int, num_out: int, *, bias: bool = True, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(num_in, num_out, bias=bias).requires_grad_(False)


def test_the_emulation_knows_every_e4m3_value_and_the_ties_between_them():
    codes = torch.arange(256, dtype=torch.uint8).view(FLOAT8).double()
    values = codes[codes.isfinite()].sort().values
    assert torch.equal(e4m3(values), values)
    between = (values[1:] + values[:-1]) / 2
    assert torch.equal(e4m3(between), between.float().to(FLOAT8).double())


def test_rows_are_scaled_to_the_largest_value_and_rounded():
    torch.manual_seed(1)
    x = torch.randn(5, 64) * torch.tensor([1e-4, 1.0, 30.0, 1e6, 0.0])[:, None]
    values, scales = scaled_rows(x)
    amax = x.double().abs().amax(1, keepdim=True)
    assert torch.allclose(scales[:4].double(), amax[:4] / 448, rtol=1e-6, atol=0)
    assert torch.equal(values[:4].double().abs().amax(1), torch.full((4,), 448.0, dtype=torch.float64))
    # The scaling itself is done in fp32: values that it moves across a tie are few and one step off.
    wanted = e4m3(x[:4] / (amax[:4] / 448))
    assert (values[:4].double() == wanted).double().mean() > 0.99
    assert torch.equal(values[4].float(), torch.zeros(64))
    assert scales.isfinite().all()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 64), (2, 5, 64)])
def test_a_layer_is_the_product_of_what_was_rounded(shape: tuple[int, ...], bias: bool):
    plain = linear(64, 48, bias=bias)
    layer = Float8Linear.of(plain)
    x = torch.randn(shape)
    rows = scaled_rows(x)
    wanted = (rows.values.double() * rows.scales) @ (layer.weight.double() * layer.weight_scale).T
    wanted = wanted + plain.bias.double() if bias else wanted
    found = layer(x)
    assert found.shape == wanted.shape
    assert found.dtype == x.dtype
    assert relative_l2(found.double(), wanted) < 1e-6
    assert layer(x.bfloat16()).dtype == torch.bfloat16


def test_how_far_a_wide_layer_is_off():
    """3 bits round with 2.6 % relative error each side: 3.7 % together, whatever the width."""
    plain = linear(1024, 512)
    x = torch.randn(256, 1024)
    exact = nn.functional.linear(x.double(), plain.weight.double(), plain.bias.double())
    error = relative_l2(Float8Linear.of(plain)(x).double(), exact)
    assert 0.03 < error < 0.042


def test_an_outlying_token_and_channel_cost_only_themselves():
    plain = linear(256, 64, bias=False)
    x = torch.randn(32, 256)
    others = slice(1, None)
    before = Float8Linear.of(plain)(x)[others, others]
    x[0] *= 1e4
    plain.weight[0] *= 1e4
    assert torch.equal(Float8Linear.of(plain)(x)[others, others], before)


def test_a_weight_is_held_to_three_percent():
    weight = linear(64, 48).weight
    assert relative_l2(plain_rows(scaled_rows(weight), torch.float64), weight.double()) < 0.03


def test_a_gpu_is_given_what_its_fp8_units_take(monkeypatch: pytest.MonkeyPatch):
    """Fake tensors of a GPU: torch checks shapes, strides and dtypes of the call without one."""
    calls: list[dict[str, object]] = []
    product = torch._scaled_mm

    def counting(*args: object, **options: object) -> Tensor:
        calls.append(options)
        return product(*args, **options)

    monkeypatch.setattr(torch, "_scaled_mm", counting)
    with FakeTensorMode():
        weight, bias, x = (
            torch.empty(shape, device="cuda", dtype=torch.bfloat16) for shape in ((48, 64), (48,), (2, 5, 64))
        )
        found = Float8Linear(scaled_rows(weight), nn.Parameter(bias, requires_grad=False))(x)
        assert (found.shape, found.dtype, found.device.type) == ((2, 5, 48), torch.bfloat16, "cuda")
    assert [call["use_fast_accum"] for call in calls] == [True]


def in_float8(model: Transformer, *skip: str) -> Transformer:
    weights = {name: layer.weight.shape for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    use_float8(model, Float8Layers(skip).among(weights.items()))
    return model


def float8_names(model: Transformer) -> set[str]:
    return {name for name, layer in model.named_modules() if isinstance(layer, Float8Linear)}


def test_the_layers_that_can_and_those_that_are_spared():
    every = float8_names(in_float8(build(LTX23)))
    assert every == set(candidates([(name, (16, 32)) for name in every]))
    assert all(name.startswith("transformer_blocks.") for name in every)
    assert not any("gate" in name for name in every)
    spared = every - float8_names(in_float8(build(LTX23), "*.ff.*", "transformer_blocks.0.*"))
    assert spared == {name for name in every if ".ff." in name or name.startswith("transformer_blocks.0.")}
    assert candidates([("transformer_blocks.0.attn1.to_q", (24, 16)), ("proj_out", (16, 16))]) == []


@torch.inference_mode()
def test_a_transformer_in_fp8_is_near_the_plain_one():
    step = passes(*modalities("uniform", 1), "one")
    (wanted,) = build(LTX23).forward_passes(step)
    (found,) = in_float8(build(LTX23)).forward_passes(step)
    for one, other in zip(found, wanted, strict=True):
        assert 1e-3 < relative_l2(one, other) < 0.1


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.skipif(lacking_compiler(CPU) is not None, reason=f"{lacking_compiler(CPU)}")
@torch.inference_mode()
def test_compiled_layers_with_one_input_share_its_scaling(monkeypatch: pytest.MonkeyPatch):
    """Video alone, in one process for all sizes: inductor's C++ takes half a minute for a whole block."""
    scalings: list[int] = []
    share = SharedSubexpressions.__call__

    def counting(self: SharedSubexpressions, graph: torch.fx.Graph) -> None:
        share(self, graph)
        scalings.append(sum(node.target is torch.ops.aten.amax.default for node in graph.nodes))

    monkeypatch.setattr(SharedSubexpressions, "__call__", counting)
    monkeypatch.setattr(SharedSubexpressions, "uuid", lambda self: None)  # or what was compiled before is taken
    plain, quick = in_float8(build(LTX23)), in_float8(build(LTX23))
    compile_blocks(quick)
    video, _ = modalities("levels", 1)
    for num_tokens in (18, 12):
        step = at(video, num_tokens, 0.7)
        assert relative_l2(quick(step, None)[0], plain(step, None)[0]) < 1e-6
    # Keys and values of text; then queries, keys and values of self attention, its output, queries of text, its output,
    # and both of the feed-forward.
    assert scalings == [1, 6]
