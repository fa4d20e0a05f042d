"""The transformer's fused kernels on a GPU: no further from float64 than plain torch. Needs an NVIDIA GPU."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent.parent / "models"))
from test_compiled_cuda import in_bf16, on_gpu
from test_transformer import LTX2, LTX23, build
from test_transformer_float8 import in_float8
from test_transformer_passes import ALONE, TOGETHER, modalities, passes, relative_l2

from ltxgen.models.transformer import Transformer, TransformerPass, Velocities
from ltxgen.models.transformer.graphs import GraphedPasses, graphed

pytest.importorskip("triton", reason="comes with torch's CUDA builds")
from ltxgen.models.transformer.fused import use_fused_kernels

HAS_FLOAT8 = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


# Both streams' widths and the text's; a sample that ends within what is aligned, several samples.
@pytest.mark.parametrize(
    "size", [(1, 126, 32, 64), (4, 126, 32, 64), (1, 1537, 32, 128), (4, 1023, 32, 128), (2, 5, 3, 24)]
)
@torch.inference_mode()
def test_each_kernel_is_no_further_from_float64_than_plain_torch(size: tuple[int, int, int, int]):
    from elementwise_cases import Size, cases, errors

    worse = []
    for name, forms, step in cases():
        if forms.scaled and not HAS_FLOAT8:
            continue
        fused, plain = errors(step, forms, Size(*size))
        print(f"{name}: {fused:.2e}, plain {plain:.2e}")
        # Where one does no more roundings than the other they differ by chance, the less the more values there are.
        if not fused <= (1.01 + (size[0] * size[1] * size[2] * size[3]) ** -0.5) * plain:
            worse.append(f"{name}: {fused:.2e}, plain {plain:.2e}")
    assert not worse


def fused(model: Transformer) -> Transformer:
    use_fused_kernels(model)
    return model


def exact_of(settings: dict, model: Transformer) -> Transformer:
    exact = build(settings).double().cuda()
    exact.load_state_dict({key: x.double() for key, x in model.state_dict().items()})
    return exact


def total_error(found: Sequence[Velocities], wanted: Sequence[Velocities]) -> float:
    pairs = [pair for one, other in zip(found, wanted, strict=True) for pair in zip(one, other, strict=True)]
    assert all((x is None) == (y is None) for x, y in pairs)
    return sum(relative_l2(x.double(), y.double()) for x, y in pairs if x is not None and y is not None)


@pytest.mark.parametrize("batched_tokens", [ALONE, TOGETHER])
@torch.inference_mode()
def test_a_transformer_is_no_further_from_float64_than_the_plain_one(batched_tokens: int):
    """Guided steps: perturbed and isolated passes, alone and as a batch."""
    plain, quick = in_bf16(), fused(in_bf16())
    plain.batched_tokens = quick.batched_tokens = batched_tokens
    exact = exact_of(LTX23, plain)
    errors = {"plain": 0.0, "fused": 0.0}
    for kind in ("uniform", "levels", "per_token", "masks", "no_audio_wanted"):
        for batch in (1, 2):
            step = passes(*map(on_gpu, modalities(kind, batch)), "guided")
            wanted = exact.forward_passes(step)
            for name, model in (("plain", plain), ("fused", quick)):
                errors[name] += total_error(model.forward_passes(step), wanted)
    print(errors)
    assert 1e-2 < errors["fused"] <= errors["plain"]


@torch.inference_mode()
def test_a_transformer_of_the_older_generation():
    plain, quick = (build(LTX2).bfloat16().cuda() for _ in range(2))
    step = passes(*map(on_gpu, modalities("ltx2", 1)), "guided")
    wanted = exact_of(LTX2, plain).forward_passes(step)
    errors = [total_error(model.forward_passes(step), wanted) for model in (plain, fused(quick))]
    assert 1e-2 < errors[1] <= 1.05 * errors[0]


@pytest.mark.skipif(not HAS_FLOAT8, reason="needs a CUDA device with fp8 units")
@pytest.mark.parametrize("skip", [(), ("*.to_k", "*.ff.net.2", "*audio_attn1*")])
@torch.inference_mode()
def test_layers_in_fp8_are_as_near_float64_as_without_kernels(skip: tuple[str, ...]):
    step = passes(*map(on_gpu, modalities("levels", 1)), "guided")
    wanted = exact_of(LTX23, in_bf16()).forward_passes(step)
    errors = [
        total_error(model.forward_passes(step), wanted)
        for model in (in_float8(in_bf16(), *skip), fused(in_float8(in_bf16(), *skip)))
    ]
    print(errors)
    assert 1e-2 < errors[1] <= 1.1 * errors[0]


@pytest.mark.parametrize("float8", [False, pytest.param(True, marks=pytest.mark.skipif(not HAS_FLOAT8, reason="fp8"))])
@pytest.mark.parametrize("batched_tokens", [ALONE, TOGETHER])
@torch.inference_mode()
def test_replayed_steps_give_the_very_bits(batched_tokens: int, float8: bool):
    model = in_float8(in_bf16()) if float8 else in_bf16()
    model.batched_tokens = batched_tokens
    replaying = graphed(fused(model), TOGETHER)
    assert isinstance(replaying, GraphedPasses)
    step: list[TransformerPass] = passes(*map(on_gpu, modalities("levels", 1)), "guided")
    wanted = model.forward_passes(step)
    for _ in range(3):
        for one, other in zip(replaying.forward_passes(step), wanted, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))
    (recorded,) = replaying._recorded.values()
    assert recorded.replay is not None
