"""What a Gemma 3 text tower holds and how files name it, known without transformers, which takes seconds to import."""

from collections.abc import Mapping
from typing import Any

# Where files keep the text tower: each of these stands for our `model.`. Longest first, the first match counts;
# the empty one is for files that hold `embed_tokens.`, `layers.` and `norm.` bare.
KEY_PREFIXES = ("language_model.model.", "model.language_model.", "language_model.", "model.", "")
# What multi-modal and causal-LM files hold besides it. The LM head is tied to the embedding and not needed here.
IGNORED_KEY_PREFIXES = (
    "vision_tower.",
    "model.vision_tower.",
    "multi_modal_projector.",
    "model.multi_modal_projector.",
    "lm_head.",
    "model.lm_head.",
    "language_model.lm_head.",
)
# What transformers' Gemma3TextConfig takes for sizes that a config.json leaves out.
DEFAULT_SIZES = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "attention_bias": False,
}


def state_dict_key(file_key: str) -> str | None:
    """Name under which `GemmaTextEncoder` holds a tensor of a Gemma file; None for a tensor it doesn't use."""
    if file_key.startswith(IGNORED_KEY_PREFIXES):
        return None
    prefix = next(prefix for prefix in KEY_PREFIXES if file_key.startswith(prefix))
    return "model." + file_key.removeprefix(prefix)


def text_section(config: Mapping[str, Any]) -> dict[str, Any]:
    """The text tower's part of a Gemma 3 config.json. Raises ValueError for another architecture."""
    text = dict(config.get("text_config", config))
    model_type = text.get("model_type", "gemma3_text")
    if model_type != "gemma3_text":
        raise ValueError(f"text encoder model_type = {model_type!r}: must be 'gemma3' or 'gemma3_text' (Gemma 3)")
    if text.get("use_bidirectional_attention"):
        raise ValueError("text encoder use_bidirectional_attention = true: must be false, LTX encodes causally")
    return text


def parameter_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of a `GemmaTextEncoder` with this config.json, by name. Raises ValueError as `text_section`."""
    text = DEFAULT_SIZES | text_section(config)
    width, inner, head = (int(text[name]) for name in ("hidden_size", "intermediate_size", "head_dim"))
    queries, keys = head * int(text["num_attention_heads"]), head * int(text["num_key_value_heads"])
    projections = {"q_proj": (queries, width), "k_proj": (keys, width), "v_proj": (keys, width)}
    projections["o_proj"] = (width, queries)
    layer: dict[str, tuple[int, ...]] = {}
    for name, shape in projections.items():
        layer[f"self_attn.{name}.weight"] = shape
        if text["attention_bias"]:
            layer[f"self_attn.{name}.bias"] = shape[:1]
    layer |= {"self_attn.q_norm.weight": (head,), "self_attn.k_norm.weight": (head,)}
    layer |= {"mlp.gate_proj.weight": (inner, width), "mlp.up_proj.weight": (inner, width)}
    layer["mlp.down_proj.weight"] = (width, inner)
    for part in ("attention", "feedforward"):
        before = "input" if part == "attention" else "pre_feedforward"
        layer |= {f"{before}_layernorm.weight": (width,), f"post_{part}_layernorm.weight": (width,)}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (int(text["vocab_size"]), width)}
    for number in range(int(text["num_hidden_layers"])):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    return shapes | {"model.norm.weight": (width,)}
