"""The transformer without video: a third of its weights, which predict sound alone."""

from __future__ import annotations

from torch import nn

from ltxgen.models.transformer.model import Transformer

BLOCKS = "transformer_blocks"


def is_for_sound(key: str) -> bool:
    """Whether sound alone needs a parameter of `Transformer`: what is called `audio_...`, less attention to video.

    These are the official audio-only model's (`LTXModelType.AudioOnly`, ltx_core/model/transformer).
    """
    name = key.split(".", 2)[-1] if key.startswith(f"{BLOCKS}.") else key
    return name.startswith("audio_") and not name.startswith("audio_to_video_attn")


def without_video(transformer: Transformer) -> Transformer:
    """`transformer` itself, less what only video needs; it then takes passes whose video is None."""
    _keep_sound(transformer)
    for block in transformer.transformer_blocks:
        _keep_sound(block)
    return transformer


def _keep_sound(module: nn.Module) -> None:
    names = [name for name, _ in (*module.named_children(), *module.named_parameters(recurse=False))]
    for name in names:
        if name != BLOCKS and not is_for_sound(name):
            setattr(module, name, None)
