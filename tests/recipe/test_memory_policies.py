"""Whole runs under every memory policy: the same tensors bit for bit, whatever moved where in between."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_parts import assert_it_dies
from torch import nn

from ltxgen.artifacts.artifact import ArtifactSpec, ResolvedArtifact
from ltxgen.artifacts.components import BuildOptions
from ltxgen.artifacts.fusion import FusedLoras
from ltxgen.artifacts.load import load_component, tensor_reader
from ltxgen.artifacts.resolver import Places, resolve_all
from ltxgen.memory.placement import StreamedWeights
from ltxgen.memory.stream import BlockStream
from ltxgen.models.transformer.float8 import Float8Layers
from ltxgen.recipe import parts as parts_module
from ltxgen.recipe import run as run_module
from ltxgen.recipe.parts import ArtifactParts

CPU = torch.device("cpu")
# The tiny recipe's transformer goes from base to refine; its LoRAs change on the way.
LORAS = (
    "+stages.base.loras.distilled=0.25",
    "stages.refine.loras.distilled=0.75",
    "~stages.decode_audio",
    "~stages.write",
)
POLICIES = {
    "auto": ("memory=auto",),
    "resident": ("memory=resident",),
    "swap": ("memory=swap",),
    "stream": ("memory=stream", "memory.stream_from=host"),
    "disk": ("memory=stream", "memory.stream_from=disk"),
}
NAMES = ("checkpoint", "distilled_lora", "text_encoder")


@pytest.fixture(scope="session")
def plain(stored_run) -> dict[str, torch.Tensor]:
    return load_file(stored_run("memory=last_use", *LORAS) / "tensors.safetensors")


@pytest.fixture(scope="session")
def plain_in_fp8(stored_run) -> dict[str, torch.Tensor]:
    return load_file(stored_run("memory=last_use", "precision=fp8", *LORAS) / "tensors.safetensors")


@pytest.mark.parametrize("policy", ["swap", "stream", "disk"])
def test_every_policy_gives_the_same_video_in_fp8(run_ltxgen, tiny_words, tmp_path: Path, plain_in_fp8, policy):
    words = (*tiny_words, "precision=fp8", "output.tensors=true", f"output.dir={tmp_path / 'out'}")
    result = run_ltxgen(*words, *LORAS, *POLICIES[policy], cwd=tmp_path)
    assert result.code == 0, result.err
    found = load_file(tmp_path / "out" / "tensors.safetensors")
    assert found.keys() == plain_in_fp8.keys()
    assert [name for name in plain_in_fp8 if not torch.equal(found[name], plain_in_fp8[name])] == []


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_gives_the_same_video(run_ltxgen, tiny_words, tmp_path: Path, plain, policy, monkeypatch):
    entered: list[BlockStream] = []
    moved: list[str] = []
    enter, set_aside = BlockStream.enter, parts_module.Aside.set_aside
    monkeypatch.setattr(BlockStream, "enter", lambda self, block: (entered.append(self), enter(self, block))[1])
    monkeypatch.setattr(
        parts_module.Aside,
        "set_aside",
        lambda self, name, tensors: (moved.append(name), set_aside(self, name, tensors))[1],
    )
    words = (*tiny_words, "output.tensors=true", f"output.dir={tmp_path / 'out'}", *LORAS, *POLICIES[policy])
    result = run_ltxgen(*words, cwd=tmp_path)
    assert result.code == 0, result.err
    found = load_file(tmp_path / "out" / "tensors.safetensors")
    assert found.keys() == plain.keys()
    assert [name for name in plain if not torch.equal(found[name], plain[name])] == []
    assert len(set(entered)) == (2 if policy in ("stream", "disk") else 0)  # the transformer's and Gemma's
    assert moved == (["transformer"] if policy == "swap" else [])


def test_a_run_without_words_is_that_of_last_use(run_ltxgen, tiny_words, tmp_path: Path, monkeypatch):
    made: list[object] = []
    build = run_module.parts_of
    monkeypatch.setattr(
        run_module, "parts_of", lambda plan, note: made.append(plan.memory.forecast.policy) or build(plan, note)
    )
    result = run_ltxgen(*tiny_words, f"output.dir={tmp_path / 'out'}", cwd=tmp_path)
    assert result.code == 0, result.err
    assert made == ["last_use"]


@pytest.fixture
def artifacts(tiny_set) -> dict[str, ResolvedArtifact]:
    return resolve_all([ArtifactSpec(name, source="embedded") for name in NAMES], Places()).artifacts


def streamed(
    artifacts: dict[str, ResolvedArtifact], source: str, num_kept: int = 0, options: BuildOptions | None = None
) -> StreamedWeights:
    def read_again(component: str):
        name = "text_encoder" if component == "text_encoder" else "checkpoint"
        return tensor_reader(component, artifacts[name], torch.float32, options)

    return StreamedWeights(CPU, {"transformer": num_kept, "text_encoder": num_kept}, source, read_again)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.float(), other.float())


def weights_as_used(transformer: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters of the blocks as they are while each is called."""
    seen: dict[str, torch.Tensor] = {}

    for number, block in enumerate(transformer.transformer_blocks):

        def look(module: nn.Module, inputs: object, number: int = number) -> None:
            seen.update({f"{number}.{name}": each.clone() for name, each in module.named_parameters()})

        removable = block.register_forward_pre_hook(look)
        forward, block.forward = block.forward, lambda: None
        block()
        block.forward = forward
        removable.remove()
    return seen


@pytest.mark.parametrize("float8", [None, Float8Layers(("*.audio_ff.*",))], ids=["plain", "fp8"])
@pytest.mark.parametrize("num_kept", [0, 1])
@pytest.mark.parametrize("source", ["host", "disk"])
def test_loras_come_and_go_with_the_blocks(artifacts, source, num_kept, float8):
    options = BuildOptions(float8=float8)
    placement = streamed(artifacts, source, num_kept, options)
    ours = load_component("transformer", artifacts["checkpoint"], CPU, torch.float32, options, placement=placement)
    theirs = load_component("transformer", artifacts["checkpoint"], CPU, torch.float32, options)
    reload, plain = (
        functools.partial(tensor_reader, "transformer", artifacts["checkpoint"], torch.float32, each)
        for each in (options, BuildOptions())
    )
    fused = FusedLoras(ours, keep_original=None, reload=reload, plain=plain, placement=placement)
    expected = FusedLoras(theirs, keep_original="cpu", plain=plain)
    lora = artifacts["distilled_lora"]
    for loras in ([(lora, 0.5)], [(lora, -1.25)], [(lora, 0.5), (lora, 0.1)], []):
        fused.apply(loras)
        expected.apply(loras)
        found, wanted = weights_as_used(ours), weights_as_used(theirs)
        assert found.keys() == wanted.keys()
        assert [name for name in wanted if not same(found[name], wanted[name])] == []
        outside = [name for name, _ in theirs.named_parameters() if not name.startswith("transformer_blocks.")]
        assert all(torch.equal(ours.get_parameter(name), theirs.get_parameter(name)) for name in outside)
    placement.released(["transformer"])
    fused.close()


def test_blocks_from_disk_take_no_memory(artifacts):
    placement = streamed(artifacts, "disk")
    module = load_component("transformer", artifacts["checkpoint"], CPU, torch.float32, placement=placement)
    blocks = list(module.transformer_blocks.parameters())
    assert all(each.untyped_storage().nbytes() == 4 for each in blocks)
    assert sum(each.numel() for each in blocks) > 1000
    placement.released(["transformer"])


@pytest.mark.parametrize("source", ["host", "disk"])
@pytest.mark.parametrize("name", ["transformer", "text_encoder"])
def test_a_streamed_component_dies_with_its_last_reference(artifacts, name, source):
    assert_it_dies(ArtifactParts(artifacts, BuildOptions(), CPU, streamed(artifacts, source)), name)


@torch.inference_mode()
def test_compiled_blocks_are_compiled_as_often_as_resident_ones(artifacts):
    """Their weights are now here, now there, and of the same kind."""
    from ltxgen.models.transformer import ModalityInput
    from ltxgen.models.transformer.compilation import compile_blocks

    def modality(num_tokens: int, axes: int, stream) -> ModalityInput:
        generator = torch.Generator().manual_seed(num_tokens)
        positions = (
            torch.arange(num_tokens * 2, dtype=torch.float32).reshape(1, 1, num_tokens, 2).expand(1, axes, -1, -1)
        )
        latents = torch.randn(1, num_tokens, stream.in_channels, generator=generator)
        context = torch.randn(1, 4, stream.context_dim, generator=generator)
        return ModalityInput(latents, torch.ones(1, 1), torch.ones(1), positions, context)

    results, notes = {}, {}
    for num_kept in (None, 0, 1):
        torch.compiler.reset()
        notes[num_kept] = []
        options = {} if num_kept is None else {"placement": streamed(artifacts, "host", num_kept)}
        model = load_component("transformer", artifacts["checkpoint"], CPU, torch.float32, **options)
        compile_blocks(model, notes[num_kept].append, "eager")
        inputs = modality(6, 3, model.config.video), modality(5, 1, model.config.audio)
        results[num_kept] = [model(*inputs) for _ in range(2)]
    torch.compiler.reset()
    assert notes[None]
    assert notes[None] == notes[0] == notes[1]
    for num_kept in (0, 1):
        for found, wanted in zip(results[num_kept], results[None], strict=True):
            assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
