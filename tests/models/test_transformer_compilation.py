"""Compiled blocks: one compilation a structure, results of the plain path. Most tests stop at torch's own graph."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from test_transformer import LTX23, build
from test_transformer_passes import ALONE, TOGETHER, modalities, passes, relative_l2
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend

from ltxgen.attention.protocol import RoleAttention
from ltxgen.attention.sdpa import Sdpa, SdpaKernel
from ltxgen.models.transformer import AttentionByRole, ModalityInput, Transformer, elementwise, sdpa
from ltxgen.models.transformer.compilation import OpaqueAttention, compile_blocks, is_traceable
from ltxgen.models.transformer.elementwise import gelu_product
from ltxgen.runtime.environment import lacking_compiler

CPU = torch.device("cpu")
TRACED = "eager"  # dynamo's graph, run by torch: the same guards as inductor's, without its compile time


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(notes: list[str], backend: str = TRACED, **options) -> Transformer:
    model = build(LTX23, **options)
    compile_blocks(model, notes.append, backend)
    return model


def at(modality: ModalityInput, num_tokens: int, sigma: float) -> ModalityInput:
    """The first tokens of it at another noise level."""
    index = modality.timestep_index
    return replace(
        modality,
        latents=modality.latents[:, :num_tokens],
        positions=modality.positions[:, :, :num_tokens],
        sigma=torch.full((1,), sigma),
        timesteps=torch.full((1, 1), sigma) if index is None else modality.timesteps * sigma,
        timestep_index=None if index is None else index[:, :num_tokens].clone(memory_format=torch.contiguous_format),
    )


# Structures of a step: its text; and text, stg's perturbed block and isolated modalities, or the batch without and with
# that perturbed block.
@pytest.mark.parametrize(("kind", "batched_tokens", "structures"), [("uniform", ALONE, 4), ("levels", TOGETHER, 3)])
@torch.inference_mode()
def test_a_structure_is_compiled_once(kind: str, batched_tokens: int, structures: int):
    notes: list[str] = []
    model, plain = compiled(notes, batched_tokens=batched_tokens), build(LTX23, batched_tokens=batched_tokens)
    video, audio = modalities(kind, 1)
    for num_video, num_audio in ((18, 5), (12, 4)):
        for sigma in (1.0, 0.7, 0.2):
            step = passes(at(video, num_video, sigma), at(audio, num_audio, sigma), "guided")
            for found, wanted in zip(model.forward_passes(step), plain.forward_passes(step), strict=True):
                assert all(relative_l2(one, other) <= 1e-6 for one, other in zip(found, wanted, strict=True))
            assert len(notes) == structures
    assert sum("projection of text" in note for note in notes) == 1


@torch.inference_mode()
def test_attention_that_is_not_traceable_is_called_as_it_is():
    seen: list[bool] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        seen.append(torch.compiler.is_compiling())
        return sdpa(q, k, v, mask)

    notes: list[str] = []
    step = passes(*modalities("masks", 1), "one")
    (wanted,) = build(LTX23).forward_passes(step)
    for _ in range(2):  # the second transformer, in the place of the first, finds the code of that
        model = compiled(notes, attention=AttentionByRole(video_self=attend, audio_text=attend))
        (found,) = model.forward_passes(step)
        assert all(relative_l2(one, other) <= 1e-6 for one, other in zip(found, wanted, strict=True))
        assert seen == [False] * 6
        assert len(notes) == 2
        seen.clear()
        del model


class Math(SdpaKernel):
    """The kernel that a CPU has, chosen as cuDNN's is."""

    kernel = SDPBackend.MATH

    def with_lse(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        raise AssertionError("the ring alone asks for it")


def test_torchs_own_attention_is_traceable_and_unknown_functions_are_not():
    assert is_traceable(sdpa)
    assert is_traceable(RoleAttention(Math(), Sdpa()))
    assert not is_traceable(lambda q, k, v, mask: q)
    assert not is_traceable(OpaqueAttention(sdpa))


@torch.inference_mode()
def test_a_kernel_chosen_by_context_is_compiled_with_the_block():
    notes: list[str] = []
    roles = AttentionByRole(*[RoleAttention(Math(), Sdpa())] * 6)
    step = passes(*modalities("uniform", 1), "one")
    (found,) = compiled(notes, attention=roles).forward_passes(step)
    (wanted,) = build(LTX23).forward_passes(step)
    assert all(relative_l2(one, other) <= 1e-6 for one, other in zip(found, wanted, strict=True))
    assert len(notes) == 2


@pytest.mark.parametrize(
    ("device", "dtype", "bias", "in_one"),
    [
        ("cuda", torch.bfloat16, True, True),
        ("cuda", torch.bfloat16, False, False),
        ("cuda", torch.float32, True, False),
        ("cpu", torch.bfloat16, True, False),  # the CPU's is the exact GELU, not the tanh form
    ],
)
def test_gelu_goes_into_the_product_where_that_has_the_tanh_form(
    device: str, dtype: torch.dtype, bias: bool, in_one: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(elementwise, "_HAS_GELU_PRODUCT", True)
    with FakeTensorMode(), torch.inference_mode():
        x, weight, offset = (torch.empty(s, device=device, dtype=dtype) for s in [(2, 5, 8), (16, 8), (16,)])
        graph = make_fx(gelu_product)(x, weight, offset if bias else None)
        assert gelu_product(x, weight, offset if bias else None).shape == (2, 5, 16)
    called = {node.target for node in graph.graph.nodes}
    assert (torch.ops.aten._addmm_activation.default in called) is in_one
    assert (torch.ops.aten.gelu.default in called) is not in_one


@torch.inference_mode()
def test_a_compiled_transformer_dies_with_its_last_reference():
    model = compiled([])
    model.forward_passes(passes(*modalities("uniform", 1), "one"))
    weight = weakref.ref(model.transformer_blocks[0].ff.net[2].weight)
    gc.disable()
    try:
        del model
        assert weight() is None
    finally:
        gc.enable()


@pytest.mark.skipif(lacking_compiler(CPU) is not None, reason=f"{lacking_compiler(CPU)}")
@torch.inference_mode()
def test_compiled_bf16_is_no_further_from_float64_than_the_plain_path():
    # Video alone: inductor's C++ takes half a minute for a whole block.
    def bf16() -> Transformer:
        model = build(LTX23)
        state = model.state_dict()
        rounded = {key: x if "scale_shift_table" in key else x.bfloat16() for key, x in state.items()}
        model.load_state_dict(rounded, assign=True)
        return model

    notes: list[str] = []
    plain, quick, exact = bf16(), bf16(), build(LTX23).double()
    compile_blocks(quick, notes.append)
    exact.load_state_dict({key: x.double() for key, x in plain.state_dict().items()})
    video, _ = modalities("levels", 1)
    video = replace(video, latents=video.latents.bfloat16().float(), context=video.context.bfloat16().float())
    wanted, _ = exact(video, None)
    errors = [relative_l2(model(video, None)[0].double(), wanted) for model in (plain, quick)]
    assert errors[0] > 1e-3  # bf16 was at work
    assert errors[1] <= errors[0]
    assert len(notes) == 2  # none was traced again for inductor's sake
