"""The text tower of Gemma 3, run for all of its hidden states.

Shapes: B batch, S sequence, D width (3840 for the 12B model), L states = layers + 1 (49).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Gemma3TextConfig, Gemma3TextModel

from ltxgen.models.text_encoder.layout import text_section


class GemmaTextEncoder(nn.Module):
    """Gemma 3 without its LM head. Keys are `model.{embed_tokens,layers.*,norm}.*`, as those of Gemma3ForCausalLM.

    `config` is the content of config.json of Gemma3ForConditionalGeneration (the text tower is its `text_config`),
    Gemma3ForCausalLM or Gemma3TextModel. Raises ValueError for another architecture.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = Gemma3TextModel(text_config(config))

    @property
    def num_states(self) -> int:
        """L: the embeddings and the output of every layer."""
        return self.model.config.num_hidden_layers + 1

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token `ids` (B,S) and `mask` (B,S), non-zero on real tokens -> hidden states (B,S,D,L).

        State 0 is the scaled embedding, states 1 .. L-2 are outputs of layers, the last one is the output of the last
        layer after the final norm. Positions count pads too. The states of pads are finite and mean nothing.
        """
        self.materialize_buffers(ids.device)
        allowed = causal_mask(mask)
        window = self.model.config.sliding_window
        assert window is not None
        allowed_in_window = allowed & ~allowed.tril(-window)
        output = self.model(
            input_ids=ids,
            attention_mask={"full_attention": allowed, "sliding_attention": allowed_in_window},
            position_ids=torch.arange(ids.shape[1], device=ids.device)[None],
            use_cache=False,
            output_hidden_states=True,
        )
        assert len(output.hidden_states) == self.num_states
        return torch.stack(output.hidden_states, dim=-1)

    def materialize_buffers(self, device: torch.device | str) -> None:
        """Compute the buffers that no file holds, RoPE frequencies and embedding scale, on `device` in float32.

        After construction on meta they have no values, after `to_empty` wrong ones, and `.to(torch.bfloat16)` rounds
        them; they are small, so `forward` always calls this. The embedding casts its scale to the dtype of its weight:
        sqrt(3840) = 61.97 is 62.0 in bf16, as in training.
        """
        # Outside inference mode, or the module could not be used for anything else afterwards.
        with torch.inference_mode(False), torch.device("cpu"):
            for name, module in list(self.model.named_children()):
                if name.startswith("rotary_emb"):  # one in transformers 5, global and local in 4.57
                    setattr(self.model, name, type(module)(module.config).to(device))
            scale = torch.tensor(self.model.config.hidden_size**0.5, dtype=torch.float32)
            self.model.embed_tokens.register_buffer("embed_scale", scale.to(device), persistent=False)


def causal_mask(mask: Tensor) -> Tensor:
    """Which keys a query may attend to, (B,1,S,S) bool: real ones up to itself, and always itself.

    The diagonal changes nothing for real tokens. It gives the leading pads something to attend to: a row of SDPA
    without any key is NaN on some backends.
    """
    length = mask.shape[1]
    diagonal = torch.eye(length, dtype=torch.bool, device=mask.device)
    return mask.bool()[:, None, None, :].expand(-1, 1, length, length).tril() | diagonal


def text_config(config: Mapping[str, Any]) -> Gemma3TextConfig:
    """The text tower's configuration out of a Gemma 3 config.json, for SDPA."""
    parsed = Gemma3TextConfig(**_portable_rope(text_section(config)))
    parsed._attn_implementation = "sdpa"
    return parsed


def _portable_rope(text: dict[str, Any]) -> dict[str, Any]:
    """Spell the RoPE settings the way of transformers 4, which 5 reads too; 4 would ignore `rope_parameters`."""
    parameters = text.pop("rope_parameters", None)
    if parameters is None:
        return text
    local, scaling = dict(parameters["sliding_attention"]), dict(parameters["full_attention"])
    if local.get("rope_type", "default") != "default":
        raise ValueError(f"rope_parameters.sliding_attention = {local}: only rope_type 'default' is known for Gemma 3")
    for old_key, new in (("rope_local_base_freq", local), ("rope_theta", scaling)):
        if "rope_theta" in new:
            text[old_key] = new.pop("rope_theta")
    text["rope_scaling"] = scaling
    return text
