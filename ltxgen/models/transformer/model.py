"""The LTX-2 / LTX-2.3 audio-video transformer.

B batch, T tokens (1 in modulation where all tokens share a timestep), S text tokens, C width of a stream
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltxgen.models.transformer.adaln import AdaLayerNormSingle, modulate, modulation_rows
from ltxgen.models.transformer.attention import AttentionByRole
from ltxgen.models.transformer.block import TransformerBlock
from ltxgen.models.transformer.config import StreamConfig, TransformerConfig
from ltxgen.models.transformer.inputs import (
    BlockInputs,
    CrossInputs,
    Hidden,
    ModalityInput,
    StreamInputs,
    context_bias,
    self_attention_bias,
)
from ltxgen.models.transformer.perturbation import Perturbation, per_block
from ltxgen.models.transformer.rope import RotaryTable, rotary_table

CrossTimestep = Literal["own", "other"]


class CaptionProjection(nn.Module):
    """Text states to the width of a stream (LTX-2; LTX-2.3 does this before its connectors)."""

    def __init__(self, caption_channels: int, width: int):
        super().__init__()
        self.linear_1 = nn.Linear(caption_channels, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, context: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(context), approximate="tanh"))


class StreamModules(NamedTuple):
    """One stream's modules outside the blocks; the official names keep them in one flat namespace."""

    config: StreamConfig
    patchify: nn.Module
    caption_projection: nn.Module | None
    adaln: AdaLayerNormSingle
    prompt_adaln: AdaLayerNormSingle | None
    cross_adaln: AdaLayerNormSingle
    cross_gate_adaln: AdaLayerNormSingle
    head_table: Tensor
    head_projection: nn.Module


class Transformer(nn.Module):
    """Predicts the velocity of noised video and audio tokens.

    `cross_timestep` chooses what modulates audio-video attention: each token's own timestep ("own", ltx-core 1.2) or
    the other modality's sigma ("other", ltx-core 1.0). They agree where nothing is masked and both sigmas are equal.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        cross_timestep: CrossTimestep = "own",
        attention: AttentionByRole | None = None,
    ):
        super().__init__()
        if cross_timestep not in ("own", "other"):
            raise ValueError(f"cross_timestep = {cross_timestep!r}: must be 'own' or 'other'")
        self.config = config
        self.cross_timestep: CrossTimestep = cross_timestep
        video, audio, num_rows = config.video, config.audio, config.num_modulation_rows

        self.patchify_proj = nn.Linear(video.in_channels, video.width)
        self.audio_patchify_proj = nn.Linear(audio.in_channels, audio.width)
        captions = config.caption_channels
        self.caption_projection = CaptionProjection(captions, video.width) if captions else None
        self.audio_caption_projection = CaptionProjection(captions, audio.width) if captions else None

        self.adaln_single = AdaLayerNormSingle(video.width, num_rows)
        self.audio_adaln_single = AdaLayerNormSingle(audio.width, num_rows)
        has_prompt = config.prompt_adaln
        self.prompt_adaln_single = AdaLayerNormSingle(video.context_dim, 2) if has_prompt else None
        self.audio_prompt_adaln_single = AdaLayerNormSingle(audio.context_dim, 2) if has_prompt else None
        self.av_ca_video_scale_shift_adaln_single = AdaLayerNormSingle(video.width, 4)
        self.av_ca_audio_scale_shift_adaln_single = AdaLayerNormSingle(audio.width, 4)
        self.av_ca_a2v_gate_adaln_single = AdaLayerNormSingle(video.width, 1)
        self.av_ca_v2a_gate_adaln_single = AdaLayerNormSingle(audio.width, 1)

        roles = attention or AttentionByRole()
        self.transformer_blocks = nn.ModuleList(TransformerBlock(config, roles) for _ in range(config.num_layers))

        self.scale_shift_table = nn.Parameter(torch.zeros(2, video.width))
        self.audio_scale_shift_table = nn.Parameter(torch.zeros(2, audio.width))
        self.proj_out = nn.Linear(video.width, video.out_channels)
        self.audio_proj_out = nn.Linear(audio.width, audio.out_channels)

    def forward(
        self,
        video: ModalityInput | None,
        audio: ModalityInput | None,
        perturbation: Perturbation | Sequence[Perturbation] = Perturbation(),  # noqa: B008 - frozen
    ) -> tuple[Tensor | None, Tensor | None]:
        """Velocities (B, T, channels) of video and audio; None for a modality that is absent or not enabled.

        `perturbation` holds for the whole batch, or a sequence of B for one sample each.
        """
        hidden, inputs = self.embed(video, audio)
        hidden = self.run_blocks(hidden, inputs, perturbation)
        return self.head(hidden, inputs)

    def embed(self, video: ModalityInput | None, audio: ModalityInput | None) -> tuple[Hidden, BlockInputs]:
        """Tokens at stream width, and all that the blocks and the head need to know beside them."""
        hidden = Hidden(
            None if video is None else self.patchify_proj(video.latents.to(self.dtype)),
            None if audio is None else self.audio_patchify_proj(audio.latents.to(self.dtype)),
        )
        inputs = BlockInputs(
            None if video is None else self._stream_inputs(self._video, video, audio),
            None if audio is None else self._stream_inputs(self._audio, audio, video),
        )
        return hidden, inputs

    def run_blocks(
        self,
        hidden: Hidden,
        inputs: BlockInputs,
        perturbation: Perturbation | Sequence[Perturbation] = Perturbation(),  # noqa: B008 - frozen
        blocks: range | None = None,
    ) -> Hidden:
        """Hidden states after `blocks` (default: all of them), given those before the first of them.

        Raises ValueError if the perturbation names a block that the model does not have.
        """
        self._check_perturbation(perturbation)
        blocks = range(self.config.num_layers) if blocks is None else blocks
        for index, kept in zip(blocks, per_block(perturbation, blocks, self._device), strict=True):
            hidden = self.transformer_blocks[index](hidden, inputs, kept)
        return hidden

    def head(self, hidden: Hidden, inputs: BlockInputs) -> tuple[Tensor | None, Tensor | None]:
        """Hidden states after the last block to velocities."""
        return (
            self._velocity(self._video, hidden.video, inputs.video),
            self._velocity(self._audio, hidden.audio, inputs.audio),
        )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations."""
        return self.patchify_proj.weight.dtype

    @property
    def _device(self) -> torch.device:
        return self.patchify_proj.weight.device

    @property
    def _video(self) -> StreamModules:
        return StreamModules(
            self.config.video,
            self.patchify_proj,
            self.caption_projection,
            self.adaln_single,
            self.prompt_adaln_single,
            self.av_ca_video_scale_shift_adaln_single,
            self.av_ca_a2v_gate_adaln_single,
            self.scale_shift_table,
            self.proj_out,
        )

    @property
    def _audio(self) -> StreamModules:
        return StreamModules(
            self.config.audio,
            self.audio_patchify_proj,
            self.audio_caption_projection,
            self.audio_adaln_single,
            self.audio_prompt_adaln_single,
            self.av_ca_audio_scale_shift_adaln_single,
            self.av_ca_v2a_gate_adaln_single,
            self.audio_scale_shift_table,
            self.audio_proj_out,
        )

    def _stream_inputs(self, modules: StreamModules, own: ModalityInput, other: ModalityInput | None) -> StreamInputs:
        num_tokens = own.latents.shape[1]
        assert own.timesteps.shape[1] in (1, num_tokens), f"{own.timesteps.shape[1]} timesteps, {num_tokens} tokens"
        scale = self.config.timestep_scale
        modulation, embedded_timestep = modules.adaln(own.timesteps * scale)
        prompt_modulation = None
        if modules.prompt_adaln is not None:
            prompt_modulation, _ = modules.prompt_adaln(own.sigma[:, None] * scale)
        context = own.context.to(self.dtype)
        if modules.caption_projection is not None:
            context = modules.caption_projection(context)
        return StreamInputs(
            enabled=own.enabled,
            context=context,
            context_bias=context_bias(own.context_mask, self.dtype),
            self_bias=self_attention_bias(own.attention_mask, self.dtype),
            modulation=modulation,
            prompt_modulation=prompt_modulation,
            embedded_timestep=embedded_timestep,
            rotary=self._rotary(own.positions, modules.config, modules.config.max_pos),
            cross=None if other is None else self._cross_inputs(modules, own, other),
        )

    def _cross_inputs(self, modules: StreamModules, own: ModalityInput, other: ModalityInput) -> CrossInputs:
        # The gate follows the noise of what is attended to, in both official versions.
        other_sigma = other.sigma[:, None]
        timesteps = own.timesteps if self.cross_timestep == "own" else other_sigma
        modulation, _ = modules.cross_adaln(timesteps * self.config.timestep_scale)
        gate, _ = modules.cross_gate_adaln(other_sigma * self.config.gate_timestep_scale)
        # Audio and video share time alone, and the heads of audio-video attention are the audio stream's.
        rotary = self._rotary(own.positions[:, :1], self.config.audio, (self.config.cross_max_pos,))
        return CrossInputs(modulation, gate, rotary)

    def _rotary(self, positions: Tensor, heads: StreamConfig, max_pos: tuple[float, ...]) -> RotaryTable:
        return rotary_table(
            positions,
            max_pos,
            width=heads.width,
            num_heads=heads.num_heads,
            theta=self.config.rope_theta,
            double_precision=self.config.rope_double_precision,
            dtype=self.dtype,
        )

    def _velocity(self, modules: StreamModules, x: Tensor | None, stream: StreamInputs | None) -> Tensor | None:
        if x is None or stream is None or not stream.enabled:
            return None
        shift, scale = modulation_rows(modules.head_table, stream.embedded_timestep[:, :, None])
        normed = F.layer_norm(x, x.shape[-1:], eps=self.config.norm_eps)
        return modules.head_projection(modulate(normed, shift, scale))

    def _check_perturbation(self, perturbation: Perturbation | Sequence[Perturbation]) -> None:
        samples = (perturbation,) if isinstance(perturbation, Perturbation) else perturbation
        named = {i for one in samples for i in one.skip_video_self_attention | one.skip_audio_self_attention}
        unknown = sorted(named - set(range(self.config.num_layers)))
        if unknown:
            raise ValueError(f"blocks {unknown} to perturb: must be within 0..{self.config.num_layers - 1}")
