"""Compiled blocks on a GPU: bf16 against float64, and one compilation a structure. Needs one CUDA device."""

from __future__ import annotations

import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

sys.path.append(str(Path(__file__).parent.parent / "models"))
from test_transformer import LTX23, build
from test_transformer_passes import ALONE, TOGETHER, modalities, passes, relative_l2

from ltxgen.models.transformer import ModalityInput, Transformer
from ltxgen.models.transformer.compilation import compile_blocks
from ltxgen.models.transformer.elementwise import gelu_product
from ltxgen.models.transformer.graphs import GraphedPasses, graphed

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def on_gpu(modality: ModalityInput) -> ModalityInput:
    """With latents and contexts that bf16 holds exactly."""
    moved = {f.name: x.cuda() for f in fields(modality) if isinstance(x := getattr(modality, f.name), torch.Tensor)}
    return replace(modality, **moved | {name: moved[name].bfloat16().float() for name in ("latents", "context")})


def in_bf16() -> Transformer:
    model = build(LTX23)
    state = model.state_dict()
    rounded = {key: x if "scale_shift_table" in key else x.bfloat16() for key, x in state.items()}
    model.load_state_dict(rounded, assign=True)
    return model.cuda()


@pytest.mark.parametrize("batched_tokens", [ALONE, TOGETHER])
@torch.inference_mode()
def test_compiled_bf16_is_no_further_from_float64_than_the_plain_path(batched_tokens: int):
    notes: list[str] = []
    plain, quick, exact = in_bf16(), in_bf16(), build(LTX23).double().cuda()
    exact.load_state_dict({key: x.double() for key, x in plain.state_dict().items()})
    compile_blocks(quick, notes.append)
    quick.batched_tokens = batched_tokens
    errors = {"plain": 0.0, "quick": 0.0}
    for kind in ("uniform", "levels"):
        step = passes(*map(on_gpu, modalities(kind, 1)), "guided")
        wanted = exact.forward_passes(step)
        for name, model in (("plain", plain), ("quick", quick)):
            for found, right in zip(model.forward_passes(step), wanted, strict=True):
                errors[name] += sum(relative_l2(x.double(), y) for x, y in zip(found, right, strict=True))
    assert 1e-2 < errors["quick"] <= errors["plain"]
    assert notes


@torch.inference_mode()
def test_gelu_within_the_product_is_no_further_from_float64_than_after_it():
    generator = torch.Generator("cuda").manual_seed(0)
    sizes = [(1, 384, 256), (1024, 256), (1024,)]
    x, weight, bias = (torch.randn(size, generator=generator, device="cuda", dtype=torch.bfloat16) for size in sizes)
    weight /= 16
    exact = F.gelu(F.linear(x.double(), weight.double(), bias.double()), approximate="tanh")
    plain = F.gelu(F.linear(x, weight, bias), approximate="tanh")
    found = gelu_product(x, weight, bias)
    assert not torch.equal(found, plain)  # another kernel
    assert relative_l2(found.double(), exact) <= relative_l2(plain.double(), exact)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("batched_tokens", [ALONE, TOGETHER])
@torch.inference_mode()
def test_replayed_steps_give_what_steps_run_one_by_one_give(batched_tokens: int, compiled: bool):
    model = in_bf16()
    model.batched_tokens = batched_tokens
    if compiled:
        compile_blocks(model)
    replaying = graphed(model, TOGETHER)
    assert isinstance(replaying, GraphedPasses)
    video, audio = map(on_gpu, modalities("levels", 1))
    steps = [passes(video, audio, "guided"), passes(video, audio, "one")]
    found, wanted = [], []
    for number in range(4):
        for step in steps:
            # New tensors of other values, which the passes share; all else is the same tensors.
            changed = [
                {name: getattr(modality, name) * 0.8**number for name in ("latents", "timesteps", "sigma")}
                for modality in (video, audio)
            ]
            now = [
                replace(each, video=replace(each.video, **changed[0]), audio=replace(each.audio, **changed[1]))
                for each in step
            ]
            found.append(replaying.forward_passes(now))
            wanted.append(model.forward_passes(now))
    for one, other in zip(found, wanted, strict=True):
        assert all(torch.equal(x, y) for both in zip(one, other, strict=True) for x, y in zip(*both, strict=True))
    assert all(recorded.replay is not None for recorded in replaying._recorded.values())
    assert len(replaying._recorded) == 2
