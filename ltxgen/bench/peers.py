"""diffusers' transformer with our weights: the same tensors, no second copy, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ltxgen.models.transformer import ModalityInput, TransformerConfig

Forward = Callable[[ModalityInput, ModalityInput], Sequence[Tensor | None]]

EAGER, COMPILED = "diffusers", "diffusers compiled"
# Ours in the order in which they are looked for; a longer name comes before one that is part of it.
_NAMES = {
    "patchify_proj": "proj_in",
    "av_ca_video_scale_shift_adaln_single": "av_cross_attn_video_scale_shift",
    "av_ca_audio_scale_shift_adaln_single": "av_cross_attn_audio_scale_shift",
    "av_ca_a2v_gate_adaln_single": "av_cross_attn_video_a2v_gate",
    "av_ca_v2a_gate_adaln_single": "av_cross_attn_audio_v2a_gate",
    "prompt_adaln_single": "prompt_adaln",
    "adaln_single": "time_embed",
    "scale_shift_table_a2v_ca_video": "video_a2v_cross_attn_scale_shift_table",
    "scale_shift_table_a2v_ca_audio": "audio_a2v_cross_attn_scale_shift_table",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
}


def missing() -> str | None:
    """Why there is no peer here, or None if there is."""
    if find_spec("diffusers") is None:
        return "diffusers is not installed"
    import diffusers

    if not hasattr(diffusers, "LTX2VideoTransformer3DModel"):
        return f"diffusers {diffusers.__version__} has no LTX-2 transformer"
    return None


def version() -> str:
    import diffusers

    return diffusers.__version__


def diffusers_forwards(
    config: TransformerConfig, weights: Mapping[str, Tensor], device: torch.device
) -> dict[str, Forward]:
    """diffusers eager and, on a GPU, compiled as it advises: its blocks, once for each shape.

    `weights` are a plain `Transformer`'s, under our names; the modules hold these very tensors.
    """
    forwards: dict[str, Forward] = {EAGER: _forward(_build(config, weights), config)}
    if device.type == "cuda":
        compiled = _build(config, weights)
        compiled.compile_repeated_blocks(fullgraph=True, dynamic=False)
        forwards[COMPILED] = _forward(compiled, config)
    return forwards


def relative_l2(ours: Sequence[Tensor | None], theirs: Sequence[Tensor | None]) -> float:
    """|ours - theirs| / |theirs|, of the modality where it is larger."""
    return max(_distance(one, other) for one, other in zip(ours, theirs, strict=True))


def _distance(one: Tensor | None, other: Tensor | None) -> float:
    assert one is not None
    assert other is not None
    return ((one.float() - other.float()).norm() / other.float().norm()).item()


def _build(config: TransformerConfig, weights: Mapping[str, Tensor]) -> Any:
    from diffusers import LTX2VideoTransformer3DModel

    video, audio = config.video, config.audio
    with torch.device("meta"):
        model: Any = LTX2VideoTransformer3DModel(
            in_channels=video.in_channels,
            out_channels=video.out_channels,
            num_attention_heads=video.num_heads,
            attention_head_dim=video.head_dim,
            cross_attention_dim=video.context_dim,
            pos_embed_max_pos=video.max_pos[0],
            base_height=video.max_pos[1],
            base_width=video.max_pos[2],
            ff_bias=video.ff_bias,
            gated_attn=config.gated_attention,
            cross_attn_mod=config.cross_attention_adaln,
            audio_in_channels=audio.in_channels,
            audio_out_channels=audio.out_channels,
            audio_num_attention_heads=audio.num_heads,
            audio_attention_head_dim=audio.head_dim,
            audio_cross_attention_dim=audio.context_dim,
            audio_pos_embed_max_pos=audio.max_pos[0],
            audio_ff_bias=audio.ff_bias,
            audio_gated_attn=config.gated_attention,
            audio_cross_attn_mod=config.cross_attention_adaln,
            num_layers=config.num_layers,
            norm_eps=config.norm_eps,
            rope_type=config.rope_type,
            rope_theta=config.rope_theta,
            rope_double_precision=config.rope_double_precision,
            timestep_scale_multiplier=config.timestep_scale,
            cross_attn_timestep_scale_multiplier=config.gate_timestep_scale,
            use_prompt_adaln_single=config.prompt_adaln,
            use_prompt_embeddings=config.caption_channels is not None,
            **({} if config.caption_channels is None else {"caption_channels": config.caption_channels}),
        )
    model.load_state_dict({_name(key): value for key, value in weights.items()}, assign=True)
    return model.eval().requires_grad_(False)


def _name(key: str) -> str:
    for ours, theirs in _NAMES.items():
        key = key.replace(ours, theirs)
    return key


def _forward(model: Any, config: TransformerConfig) -> Forward:
    """As diffusers' pipeline calls it: one timestep for all tokens, audio-video attention by the other's sigma."""

    def forward(video: ModalityInput, audio: ModalityInput) -> Sequence[Tensor | None]:
        return model(
            video.latents,
            audio.latents,
            video.context,
            audio.context,
            timestep=video.sigma * config.timestep_scale,
            audio_timestep=audio.sigma * config.timestep_scale,
            sigma=video.sigma * config.timestep_scale,
            audio_sigma=audio.sigma * config.timestep_scale,
            video_coords=video.positions,
            audio_coords=audio.positions,
            use_cross_timestep=True,
            return_dict=False,
        )

    return forward
