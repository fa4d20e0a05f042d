"""How components are cut from the single file, at the size of the published 22B model, on the meta device."""

import math

import pytest

from ltxgen.artifacts.artifact import ArtifactSpec
from ltxgen.artifacts.components import COMPONENT_NAMES, COMPONENTS, BuildOptions, artifact_of
from ltxgen.artifacts.key_rules import Prefixes
from ltxgen.artifacts.load import build_on_meta
from ltxgen.artifacts.lora import linear_weights, synthetic_lora_shapes
from ltxgen.artifacts.synthetic import synthetic_artifact

# Tensors and parameters of each prefix, as published for LTX-2.3 22B; both halves of a VAE read its two statistics.
PUBLISHED = {
    "transformer": (4186, 18_988_838_144),
    "video_connector": (129, 1_612_546_304),
    "audio_connector": (129, 403_620_096),
    "text_projection": (4, 1_156_061_184),
    "video_statistics": (2, 256),
    "video_encoder": (84 + 2, 318_936_897 + 256),
    "video_decoder": (84 + 2, 407_169_072 + 256),
    "audio_encoder": (44 + 2, 21_333_008 + 256),
    "audio_decoder": (56 + 2, 31_915_138 + 256),
    "vocoder": (667 + 557 + 3, 115_077_648 + 13_464_600 + 542_784),
    "spatial_upscaler": (72, 497_867_904),
    "spatial_upscaler_x1_5": (73, 545_058_969),
    "temporal_upscaler": (72, 130_968_192),
}
# What recipes of sound alone load of two of them.
PARTS = {"audio_transformer": (1457, 3_286_408_320), "audio_text_projection": (2, 385_353_728)}


def module_of(name: str):
    artifact = synthetic_artifact(ArtifactSpec(artifact_of(name), source="synthetic"))
    return build_on_meta(COMPONENTS[name], artifact, BuildOptions(), {})


@pytest.mark.parametrize("name", PUBLISHED | PARTS)
def test_tensors_and_parameters_of_the_published_model(name: str):
    shapes = [tensor.shape for tensor in module_of(name).state_dict().values()]
    assert (len(shapes), sum(map(math.prod, shapes))) == (PUBLISHED | PARTS)[name]


def test_the_single_file_is_cut_without_remainder_or_overlap():
    owner: dict[str, list[str]] = {}
    for name in PUBLISHED:
        spec = COMPONENTS[name]
        if spec.artifact == "checkpoint":
            for key in module_of(name).state_dict():
                owner.setdefault(spec.keys.file_key(key), []).append(name)
    assert len(owner) == 5947
    of_file = [spec for spec in COMPONENTS.values() if spec.artifact == "checkpoint" and spec.name not in PARTS]
    for file_key, names in owner.items():
        claiming = [spec.name for spec in of_file if spec.keys.module_key(file_key) is not None]
        assert sorted(claiming) == sorted(names)
        assert len(names) == 1 or "per_channel_statistics" in file_key


@pytest.mark.parametrize(("part", "whole"), [*zip(PARTS, ("transformer", "text_projection"), strict=True)])
def test_a_part_has_keys_of_the_whole(part: str, whole: str):
    keys = set(module_of(part).state_dict())
    assert keys < set(module_of(whole).state_dict())
    for key in module_of(whole).state_dict():
        in_file = COMPONENTS[whole].keys.file_key(key)
        assert COMPONENTS[part].keys.module_key(in_file) == (key if key in keys else None)
    assert COMPONENTS[part].keys.module_key("vae.encoder.conv_in.conv.weight") is None


def test_every_linear_layer_of_the_transformer_has_a_place_in_the_distilled_lora():
    shapes = synthetic_lora_shapes(linear_weights(module_of("transformer")), rank=384)
    assert len(shapes) == 3320
    assert sum(map(math.prod, shapes.values())) == 3_802_497_024


@pytest.mark.parametrize(
    ("component", "file_key", "module_key"),
    [
        ("transformer", "model.diffusion_model.proj_out.weight", "proj_out.weight"),
        ("transformer", "model.diffusion_model.video_embeddings_connector.learnable_registers", None),
        (
            "video_connector",
            "model.diffusion_model.video_embeddings_connector.learnable_registers",
            "learnable_registers",
        ),
        ("vocoder", "vocoder.vocoder.conv_pre.weight", "vocoder.conv_pre.weight"),
        ("vocoder", "vocoder.mel_stft.mel_basis", "mel_stft.mel_basis"),
        ("video_statistics", "vae.per_channel_statistics.std-of-means", "std-of-means"),
        ("video_encoder", "vae.per_channel_statistics.std-of-means", "per_channel_statistics.std-of-means"),
        ("video_decoder", "vae.per_channel_statistics.channel", None),
        ("video_statistics", "vae.per_channel_statistics.mean-of-stds", None),
        ("audio_decoder", "vae.decoder.conv_in.conv.weight", None),
        ("audio_decoder", "audio_vae.decoder.conv_in.conv.weight", "conv_in.conv.weight"),
        ("text_encoder", "language_model.model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("text_encoder", "vision_tower.anything", None),
    ],
)
def test_key_rules(component: str, file_key: str, module_key: str | None):
    keys = COMPONENTS[component].keys
    assert keys.module_key(file_key) == module_key
    if module_key is not None:
        assert keys.file_key(module_key) == file_key


def test_longest_module_prefix_decides_the_file_key():
    keys = Prefixes((("a.", ""), ("b.x", "inner.x")))
    assert keys.file_key("inner.x") == "b.x"
    assert keys.file_key("inner.y") == "a.inner.y"


def test_every_component_has_an_artifact():
    assert len(COMPONENT_NAMES) == 19
    assert artifact_of("tokenizer") == "text_encoder"
    assert artifact_of("vocoder") == "checkpoint"
