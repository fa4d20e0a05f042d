"""The transformer's layers in fp8: from plain files, from files that store them so, and with LoRAs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ltxgen.artifacts.artifact import ResolvedArtifact
from ltxgen.artifacts.check import check_artifacts
from ltxgen.artifacts.components import TRANSFORMER_PREFIX, BuildOptions
from ltxgen.artifacts.fusion import FusedLoras
from ltxgen.artifacts.load import load_component, tensor_reader
from ltxgen.artifacts.safetensors_file import SafetensorsFile
from ltxgen.config.errors import Refusal
from ltxgen.models.transformer.float8 import FLOAT8, Float8Layers, Float8Linear, scaled_rows

FLOAT8_OPTIONS = BuildOptions(float8=Float8Layers(("*.audio_ff.*",)))
STORED = ("transformer_blocks.1.attn1.to_q", "transformer_blocks.1.audio_ff.net.2", "transformer_blocks.2.ff.net.2")


def artifact(name: str, path: Path) -> ResolvedArtifact:
    return ResolvedArtifact(name, path, place="test", reason="test", config_path=f"artifacts.{name}.path")


@pytest.fixture
def checkpoint(tiny_set) -> ResolvedArtifact:
    return artifact("checkpoint", tiny_set.file("checkpoint"))


@pytest.fixture
def stored(checkpoint, tmp_path: Path) -> ResolvedArtifact:
    """A checkpoint as published in fp8: three layers, each with one scale for weights and one for activations."""
    return rewritten(checkpoint, tmp_path, lambda tensors: [store(tensors, name) for name in STORED])


def store(tensors: dict[str, Tensor], name: str, dtype: torch.dtype = FLOAT8) -> None:
    key = f"{TRANSFORMER_PREFIX}{name}"
    weight = tensors[f"{key}.weight"].float()
    scale = weight.abs().max() / 448
    tensors |= {
        f"{key}.weight": (weight / scale).to(dtype),
        f"{key}.weight_scale": scale,
        f"{key}.input_scale": torch.tensor(0.1),
    }


def rewritten(
    checkpoint: ResolvedArtifact, folder: Path, change: Callable[[dict[str, Tensor]], object]
) -> ResolvedArtifact:
    tensors = load_file(checkpoint.path)
    with SafetensorsFile(checkpoint.path) as file:
        metadata = dict(file.header.metadata)
    change(tensors)
    save_file(tensors, folder / "changed.safetensors", metadata)
    return artifact("checkpoint", folder / "changed.safetensors")


def load(checkpoint: ResolvedArtifact, options: BuildOptions = FLOAT8_OPTIONS) -> nn.Module:
    return load_component("transformer", checkpoint, "cpu", torch.bfloat16, options)


def float8_names(module: nn.Module) -> set[str]:
    return {name for name, layer in module.named_modules() if isinstance(layer, Float8Linear)}


def same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def same_state(one: nn.Module, other: nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)


def test_layers_of_a_plain_file_hold_its_weights_scaled_by_rows(checkpoint):
    plain, module = load(checkpoint, BuildOptions()).state_dict(), load(checkpoint)
    names = float8_names(module)
    assert "transformer_blocks.0.attn1.to_q" in names
    assert "transformer_blocks.0.audio_attn1.to_q" in names
    assert not any(".audio_ff." in name or "gate" in name for name in names)
    for key, tensor in module.state_dict().items():
        name = key.rpartition(".")[0]
        if name in names and not key.endswith(".bias"):
            values, scales = scaled_rows(plain[f"{name}.weight"])
            assert same(tensor, values if key.endswith(".weight") else scales)
        else:
            assert same(tensor, plain[key])


def test_a_stored_layer_is_run_as_it_is_stored(checkpoint, stored):
    assert check_artifacts({"checkpoint": stored}, ["transformer"], FLOAT8_OPTIONS).problems == ()
    module, file = load(stored), load_file(stored.path)
    assert float8_names(module) == {STORED[0], STORED[2]}  # the file's choice, less what is skipped
    for name in (STORED[0], STORED[2]):
        layer, key = module.get_submodule(name), f"{TRANSFORMER_PREFIX}{name}"
        assert same(layer.weight, file[f"{key}.weight"])
        assert torch.equal(layer.weight_scale, file[f"{key}.weight_scale"].expand(layer.weight.shape[0], 1))
    others = load(checkpoint, BuildOptions()).state_dict()
    for key, tensor in module.state_dict().items():
        if not key.startswith(STORED):
            assert same(tensor, others[key])


@pytest.mark.parametrize("options", [BuildOptions(), FLOAT8_OPTIONS])
def test_a_stored_layer_that_is_not_to_run_in_fp8_is_its_product_with_the_scale(stored, options: BuildOptions):
    module, file = load(stored, options), load_file(stored.path)
    plain = set(STORED) - float8_names(module)
    assert STORED[1] in plain
    for name in plain:
        key = f"{TRANSFORMER_PREFIX}{name}"
        wanted = file[f"{key}.weight"].double() * file[f"{key}.weight_scale"].double()
        assert torch.equal(module.get_parameter(f"{name}.weight"), wanted.float().bfloat16())


def test_a_stored_scale_for_each_row(checkpoint, tmp_path: Path):
    def change(tensors: dict[str, Tensor]) -> None:
        key = f"{TRANSFORMER_PREFIX}{STORED[0]}"
        values, scales = scaled_rows(tensors[f"{key}.weight"])
        tensors |= {f"{key}.weight": values, f"{key}.weight_scale": scales.flatten()}

    found = load(rewritten(checkpoint, tmp_path, change))
    wanted = load(checkpoint).get_submodule(STORED[0])
    assert float8_names(found) == {STORED[0]}
    assert same_state(found.get_submodule(STORED[0]), wanted)


def without_scale(tensors: dict[str, Tensor]) -> None:
    store(tensors, STORED[0])
    del tensors[f"{TRANSFORMER_PREFIX}{STORED[0]}.weight_scale"]


def misshapen_scale(tensors: dict[str, Tensor]) -> None:
    store(tensors, STORED[0])
    tensors[f"{TRANSFORMER_PREFIX}{STORED[0]}.weight_scale"] = torch.ones(3)


def bias_in_fp8(tensors: dict[str, Tensor]) -> None:
    key = f"{TRANSFORMER_PREFIX}{STORED[0]}.bias"
    tensors[key] = tensors[key].to(FLOAT8)


def scale_of_a_plain_weight(tensors: dict[str, Tensor]) -> None:
    tensors[f"{TRANSFORMER_PREFIX}{STORED[0]}.weight_scale"] = torch.ones(128, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_scale, r"stores 1 tensors of transformer as fp8 that can't be run .*attn1\.to_q\.weight"),
        (misshapen_scale, "as fp8 that can't be run"),
        (functools.partial(store, name=STORED[0], dtype=torch.float8_e5m2), "as fp8 that can't be run"),
        (bias_in_fp8, r"as fp8 that can't be run .*attn1\.to_q\.bias"),
        (scale_of_a_plain_weight, r"as fp8 that can't be run .*weight_scale"),
    ],
)
def test_fp8_that_cannot_be_read(checkpoint, tmp_path: Path, change, message: str):
    changed = rewritten(checkpoint, tmp_path, change)
    for options in (BuildOptions(), FLOAT8_OPTIONS):
        (problem,) = check_artifacts({"checkpoint": changed}, ["transformer"], options).problems
        with pytest.raises(Refusal, match=message):
            raise Refusal([problem])
        with pytest.raises(Refusal, match=message):
            load(changed, options)


@pytest.mark.parametrize("keep", ["device", "cpu", None])
@pytest.mark.parametrize("name", ["checkpoint", "stored"])
def test_loras_are_added_to_plain_weights_before_these_are_scaled(request, tiny_set, name: str, keep):
    source: ResolvedArtifact = request.getfixturevalue(name)
    lora = artifact("distilled_lora", tiny_set.file("distilled_lora"))

    def reader(options: BuildOptions):
        return functools.partial(tensor_reader, "transformer", source, torch.bfloat16, options)

    module, plain = load(source), load(source, BuildOptions())
    clean = load(source)
    fused = FusedLoras(module, keep_original=keep, reload=reader(FLOAT8_OPTIONS), plain=reader(BuildOptions()))
    for strength in (0.25, 1.0):  # of each stage; never one on top of the other
        fused.apply([(lora, strength)])
        plain_fused = FusedLoras(plain)
        plain_fused.apply([(lora, strength)])
        assert float8_names(module) == float8_names(clean)
        for layer in float8_names(module):
            values, scales = scaled_rows(plain.get_parameter(f"{layer}.weight"))
            assert same(module.get_parameter(f"{layer}.weight"), values)
            assert same(module.get_parameter(f"{layer}.weight_scale"), scales)
        assert same(module.get_parameter("proj_out.weight"), plain.get_parameter("proj_out.weight"))
        plain_fused.restore()
    fused.restore()
    assert same_state(module, clean)


def test_the_synthetic_source_has_the_same_layers(checkpoint):
    from ltxgen.artifacts.artifact import ArtifactSpec
    from ltxgen.artifacts.synthetic import synthetic_artifact

    synthetic = synthetic_artifact(ArtifactSpec("checkpoint", source="synthetic", architecture="ltx23_tiny"))
    assert isinstance(synthetic, ResolvedArtifact)
    module, plain = load(synthetic), load(synthetic, BuildOptions())
    assert float8_names(module) == float8_names(load(checkpoint))
    name = STORED[0]
    assert same(module.get_parameter(f"{name}.weight"), scaled_rows(plain.get_parameter(f"{name}.weight")).values)


def test_fp8_of_other_components_is_refused(checkpoint, tmp_path: Path):
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["vae.decoder.conv_in.conv.weight"] = tensors["vae.decoder.conv_in.conv.weight"].to(FLOAT8)

    changed = rewritten(checkpoint, tmp_path, change)
    (problem,) = check_artifacts({"checkpoint": changed}, ["video_decoder"]).problems
    assert "as fp8" in str(problem)
