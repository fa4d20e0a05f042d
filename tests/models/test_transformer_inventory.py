"""Parameter names and shapes against the published LTX-2.3 checkpoint, and what metadata is understood."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from ltxgen.models.transformer import Transformer, TransformerConfig

# Names and shapes of every tensor of the published files, by component.
INVENTORY = Path(__file__).with_name("ltx23-keys.json.gz")
LTX23_22B = json.loads(
    """
{"_class_name":"AVTransformer3DModel","activation_fn":"gelu-approximate","attention_bias":true,"attention_head_dim":128,
"attention_type":"default","caption_channels":3840,"cross_attention_dim":4096,"double_self_attention":false,
"dropout":0.0,"in_channels":128,"norm_elementwise_affine":false,"norm_eps":1e-06,"norm_num_groups":32,
"num_attention_heads":32,"num_embeds_ada_norm":1000,"num_layers":48,"num_vector_embeds":null,
"only_cross_attention":false,"cross_attention_norm":true,"out_channels":128,"upcast_attention":false,
"use_linear_projection":false,"qk_norm":"rms_norm","standardization_norm":"rms_norm",
"positional_embedding_type":"rope","positional_embedding_theta":10000.0,
"positional_embedding_max_pos":[20,2048,2048],"timestep_scale_multiplier":1000,
"av_ca_timestep_scale_multiplier":1000.0,"causal_temporal_positioning":true,"audio_num_attention_heads":32,
"audio_attention_head_dim":64,"use_audio_video_cross_attention":true,"share_ff":false,"audio_out_channels":128,
"audio_cross_attention_dim":2048,"audio_positional_embedding_max_pos":[20],"av_cross_ada_norm":true,
"use_embeddings_connector":true,"use_middle_indices_grid":true,"apply_gated_attention":true,
"caption_projection_first_linear":false,"caption_projection_second_linear":false,"caption_proj_input_norm":false,
"caption_proj_before_connector":true,"cross_attention_adaln":true,"rope_type":"split",
"frequencies_precision":"float64"}
"""
)
LTX2_19B = {
    key: value
    for key, value in LTX23_22B.items()
    if key not in ("apply_gated_attention", "cross_attention_adaln") and not key.startswith("caption_proj")
}


def config(**changes) -> TransformerConfig:
    return TransformerConfig.from_metadata({"transformer": LTX23_22B | changes})


def shapes(settings: dict) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = Transformer(TransformerConfig.from_metadata({"transformer": settings}))
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def test_every_key_and_shape_of_the_22b_checkpoint():
    inventory = json.loads(gzip.decompress(INVENTORY.read_bytes()))["transformer"]
    published = {key.removeprefix("model.diffusion_model."): tuple(shape) for key, (shape, _dtype) in inventory.items()}
    assert len(published) == 4186
    assert shapes(LTX23_22B) == published


def test_keys_of_the_19b_checkpoint():
    ltx2, ltx23 = shapes(LTX2_19B), shapes(LTX23_22B)
    added = {
        f"{prefix}caption_projection.linear_{i}.{part}"
        for prefix in ("", "audio_")
        for i in (1, 2)
        for part in ("weight", "bias")
    }
    assert set(ltx2) - set(ltx23) == added
    assert ltx2["caption_projection.linear_1.weight"] == (4096, 3840)
    assert ltx2["caption_projection.linear_2.weight"] == (4096, 4096)
    assert ltx2["audio_caption_projection.linear_1.weight"] == (2048, 3840)
    assert ltx2["audio_caption_projection.linear_2.weight"] == (2048, 2048)
    assert ltx2["transformer_blocks.0.scale_shift_table"] == (6, 4096)
    assert ltx2["adaln_single.linear.weight"] == (6 * 4096, 4096)
    missing = set(ltx23) - set(ltx2)
    assert all("to_gate_logits" in key or "prompt_" in key for key in missing)


def test_defaults_of_absent_keys():
    bare = TransformerConfig.from_metadata({"transformer": {}})
    assert bare.gate_timestep_scale == 1
    assert not bare.rope_double_precision
    assert bare.rope_type == "split"
    assert not bare.gated_attention
    assert bare.num_modulation_rows == 6
    assert not bare.prompt_adaln
    assert bare.caption_channels == 3840
    assert bare.video.in_channels == bare.audio.in_channels == 128
    assert bare.video.ff_bias
    assert bare.audio.ff_bias
    assert config().prompt_adaln
    assert not config(use_prompt_adaln_single=False).prompt_adaln


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("rope_type", "spiral", "one of split, interleaved"),
        ("frequencies_precision", "float16", "one of float64, float32"),
        ("qk_norm", "layer_norm", "'rms_norm'"),
        ("activation_fn", "geglu", "'gelu-approximate'"),
        ("attention_bias", False, "True"),
        ("dropout", 0.1, "0.0"),
        ("share_ff", 1, "False"),
        ("_class_name", "Transformer3DModel", "'AVTransformer3DModel'"),
        ("caption_proj_input_norm", True, "False"),
        ("num_layers", 0, "a whole number above 0"),
        ("num_layers", "48", "a whole number above 0"),
        ("attention_head_dim", 63, "an even number above 0"),
        ("norm_eps", 0, "a number above 0"),
        ("apply_gated_attention", "yes", "true or false"),
        ("positional_embedding_max_pos", [20, 2048], "three numbers: time, height, width"),
        ("positional_embedding_max_pos", 20, "a list of numbers above 0"),
        ("audio_positional_embedding_max_pos", [20, 20], "one number: time"),
        ("audio_cross_attention_dim", 1024, "audio_num_attention_heads * audio_attention_head_dim = 2048"),
        ("cross_attention_dim", 3840, "num_attention_heads * attention_head_dim = 4096"),
    ],
)
def test_values_that_are_not_understood_are_refused(key: str, value: object, allowed: str):
    with pytest.raises(ValueError) as caught:
        config(**{key: value})
    assert str(caught.value) == f"transformer.{key} = {value!r}: must be {allowed}"


def test_all_problems_are_named_at_once():
    with pytest.raises(ValueError) as caught:
        config(rope_type="spiral", num_layers=-1, dropout=0.5)
    assert [line.split(" ")[0] for line in str(caught.value).splitlines()] == [
        "transformer.dropout",
        "transformer.num_layers",
        "transformer.rope_type",
    ]


def test_missing_section_is_refused():
    with pytest.raises(ValueError, match="no `transformer` section, only: vae"):
        TransformerConfig.from_metadata({"vae": {}})


def test_unknown_cross_timestep_is_refused():
    tiny = config(num_layers=1)
    with torch.device("meta"), pytest.raises(ValueError, match="cross_timestep = 'both': must be 'own' or 'other'"):
        Transformer(tiny, cross_timestep="both")
