"""diffusers' transformer and video decoder with our weights: the same tensors, no second copy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ltxgen.models.transformer import ModalityInput, TransformerConfig
from ltxgen.models.video_vae import Resample, ResStage, VideoDecoder

Forward = Callable[[ModalityInput, ModalityInput], Sequence[Tensor | None]]

Decode = Callable[[Tensor], Tensor]

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
    forwards: dict[str, Forward] = {EAGER: _forward(diffusers_transformer(config, weights), config)}
    if device.type == "cuda":
        compiled = diffusers_transformer(config, weights)
        compiled.compile_repeated_blocks(fullgraph=True, dynamic=False)
        forwards[COMPILED] = _forward(compiled, config)
    return forwards


def diffusers_decode(decoder: VideoDecoder) -> Decode | None:
    """diffusers' video decoder, eager and in one piece, with the weights of ours; None if it has no such layout.

    Around the same tensors, unless fused kernels have had them laid out channels last, which its own convolutions
    would be slow on: those it has as torch lays them out.
    """
    from diffusers.models.autoencoders.autoencoder_kl_ltx2 import LTX2VideoDecoder3d

    arguments = _decoder_arguments(decoder)
    if arguments is None:
        return None
    with torch.device("meta"):
        model = LTX2VideoDecoder3d(**arguments)
    statistics = decoder.per_channel_statistics
    weights = {
        _decoder_name(key): value.contiguous()
        for key, value in decoder.state_dict().items()
        if not key.startswith("per_channel_statistics.")
    }
    model.load_state_dict(weights, assign=True)
    model.eval().requires_grad_(False)
    return lambda latents: model(statistics.denormalize(latents))


def _decoder_arguments(decoder: VideoDecoder) -> dict[str, Any] | None:
    """Blocks in the order of the file, which is run backwards; diffusers has stages and upsamplers by turns."""
    config = decoder.config
    stages, resamplers = config.decoder_blocks[::2], config.decoder_blocks[1::2]
    if not all(isinstance(block, ResStage) for block in stages) or len(stages) != len(resamplers) + 1:
        return None
    kinds = {(1, 2, 2): "spatial", (2, 1, 1): "temporal", (2, 2, 2): "spatiotemporal"}
    width, layers, widths, upsampling = config.decoder_base_channels, [], [], []
    for block in reversed(config.decoder_blocks):
        if isinstance(block, Resample):
            width *= block.multiplier
            widths.append(width)
            upsampling.append(block)
        else:
            layers.append(block.num_layers)
    return {
        "in_channels": config.latent_channels,
        "out_channels": config.image_channels,
        "block_out_channels": tuple(widths),
        "layers_per_block": tuple(layers),
        "spatio_temporal_scaling": (True,) * len(upsampling),
        "inject_noise": (False,) * len(layers),
        "upsample_type": tuple(kinds[block.stride] for block in reversed(upsampling)),  # this one as they run
        "upsample_residual": tuple(block.residual for block in upsampling),
        "upsample_factor": tuple(block.multiplier for block in upsampling),
        "patch_size": config.patch_size,
        "is_causal": config.causal_decoder,
        "spatial_padding_mode": config.decoder_padding,
    }


def _decoder_name(key: str) -> str:
    """diffusers hangs the first stage in `mid_block` and pairs each other one with the upsampler before it."""
    first, *inside = key.split(".")
    if first != "up_blocks":
        return key
    number, *inside = inside
    stage = "mid_block" if number == "0" else f"up_blocks.{(int(number) - 1) // 2}"
    inside = ["resnets", *inside[1:]] if inside[0] == "res_blocks" else ["upsamplers", "0", *inside]
    return ".".join([stage, *inside])


def relative_l2(ours: Sequence[Tensor | None], theirs: Sequence[Tensor | None]) -> float:
    """|ours - theirs| / |theirs|, of the modality where it is larger."""
    return max(_distance(one, other) for one, other in zip(ours, theirs, strict=True))


def _distance(one: Tensor | None, other: Tensor | None) -> float:
    assert one is not None
    assert other is not None
    return ((one.float() - other.float()).norm() / other.float().norm()).item()


def diffusers_transformer(config: TransformerConfig, weights: Mapping[str, Tensor], **options: Any) -> Any:
    """diffusers' transformer around `weights`, a plain `Transformer`'s, under our names; `options` are its own."""
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
            **options,
        )
    model.load_state_dict({diffusers_name(key): value for key, value in weights.items()}, assign=True)
    return model.eval().requires_grad_(False)


def diffusers_name(key: str) -> str:
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
