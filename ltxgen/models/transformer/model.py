"""The LTX-2 / LTX-2.3 audio-video transformer.

B batch, T tokens, L timesteps, S text tokens, C width of a stream
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltxgen.models.transformer.adaln import AdaLayerNormSingle, Modulation, modulate, modulation_rows
from ltxgen.models.transformer.attention import AttentionByRole
from ltxgen.models.transformer.block import Batch, TransformerBlock
from ltxgen.models.transformer.config import StreamConfig, TransformerConfig
from ltxgen.models.transformer.inputs import (
    BlockInputs,
    CrossInputs,
    Hidden,
    ModalityInput,
    StreamInputs,
    TextInputs,
    Texts,
    context_bias,
    self_attention_bias,
)
from ltxgen.models.transformer.memo import TensorMemo
from ltxgen.models.transformer.passes import (
    Shortcut,
    TransformerPass,
    can_join,
    forks,
    join,
    split,
    started,
)
from ltxgen.models.transformer.perturbation import Perturbation, per_block
from ltxgen.models.transformer.rope import RotaryTable, rotary_table

CrossTimestep = Literal["own", "other"]
Velocities = tuple[Tensor | None, Tensor | None]
"""Of video and audio, (B, T, channels); None for a modality that is absent or not enabled."""


class PassesModel(Protocol):
    """A transformer, or what stands for one: its method for the passes of a step."""

    def forward_passes(self, passes: Sequence[TransformerPass]) -> list[Velocities]: ...


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
    `batched_tokens`: the passes of a step run as one batch if they have no more video tokens than this; None is the
    rule that was measured (`passes.batch_limit`).
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        cross_timestep: CrossTimestep = "own",
        attention: AttentionByRole | None = None,
        batched_tokens: int | None = None,
    ):
        super().__init__()
        if cross_timestep not in ("own", "other"):
            raise ValueError(f"cross_timestep = {cross_timestep!r}: must be 'own' or 'other'")
        self.config = config
        self.cross_timestep: CrossTimestep = cross_timestep
        self.batched_tokens = batched_tokens
        self._remembered = TensorMemo()
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
    ) -> Velocities:
        """One pass. `perturbation` holds for the whole batch, or a sequence of B for one sample each."""
        (velocities,) = self.forward_passes([TransformerPass(video, audio, perturbation)])
        return velocities

    def forward_passes(self, passes: Sequence[TransformerPass], shortcut: Shortcut | None = None) -> list[Velocities]:
        """The velocities of all passes of a step, which start from the same tokens.

        Each equals its own `forward`, but for a `shortcut` that is taken. Together they cost less: passes with the same
        contexts (the same tensors) are one until their perturbations part, and every block projects each context once.
        """
        assert all(each.has_tokens_of(passes[0]) for each in passes), "passes of one step start from the same tokens"
        self._check_perturbations(passes)
        hidden, inputs = self.embed(passes[0].video, passes[0].audio)
        after = self.run_passes(hidden, inputs, passes, shortcut=shortcut)
        velocities = {id(each): self.head(each, inputs) for each in after}
        return [velocities[id(each)] for each in after]

    def embed(self, video: ModalityInput | None, audio: ModalityInput | None) -> tuple[Hidden, BlockInputs]:
        """Tokens at stream width, and all that the blocks and the head need to know beside them and their text."""
        hidden = Hidden(
            None if video is None else self.patchify_proj(video.latents.to(self.dtype)),
            None if audio is None else self.audio_patchify_proj(audio.latents.to(self.dtype)),
        )
        inputs = BlockInputs(
            None if video is None else self._stream_inputs(self._video, video, audio),
            None if audio is None else self._stream_inputs(self._audio, audio, video),
        )
        return hidden, inputs

    def embed_texts(self, video: ModalityInput | None, audio: ModalityInput | None) -> Texts:
        """What the blocks attend to as text."""
        return Texts(
            None if video is None or not video.enabled else self._text_inputs(self._video, video),
            None if audio is None or not audio.enabled else self._text_inputs(self._audio, audio),
        )

    def run_passes(
        self,
        hidden: Hidden,
        inputs: BlockInputs,
        passes: Sequence[TransformerPass],
        blocks: Sequence[range] | None = None,
        shortcut: Shortcut | None = None,
    ) -> list[Hidden]:
        """`run_blocks` with the texts that `passes` read and their perturbations; each context is embedded once."""
        distinct = {each.context_key: each for each in passes}
        texts = {key: self.embed_texts(each.video, each.audio) for key, each in distinct.items()}
        their_texts, samples = [texts[each.context_key] for each in passes], [each.samples for each in passes]
        return self.run_blocks(hidden, inputs, their_texts, samples, blocks, shortcut)

    def run_blocks(
        self,
        embedded: Hidden,
        inputs: BlockInputs,
        texts: Sequence[Texts],
        perturbations: Sequence[Sequence[Perturbation]],
        blocks: Sequence[range] | None = None,
        shortcut: Shortcut | None = None,
    ) -> list[Hidden]:
        """Each pass's hidden states after its `blocks`, which are all unless given; `embedded` is what it starts from.
        It has its texts and its perturbation, single or one a sample.

        Block by block, and in a block pass by pass or all passes at once. A pass runs from where it parts from another.
        """
        num_blocks = self.config.num_layers
        blocks = blocks or [range(num_blocks)] * len(texts)
        parting = forks([(id(text), each) for text, each in zip(texts, perturbations, strict=True)], num_blocks)
        batched = can_join(embedded, texts, self.batched_tokens)
        hidden = [embedded] * len(texts)
        bounds = {bound for each in blocks for bound in (each.start, each.stop)} | {fork.block for fork in parting}
        if shortcut is not None:
            assert shortcut.num_blocks < num_blocks, f"{shortcut.num_blocks} of {num_blocks} blocks are no shortcut"
            bounds.add(shortcut.num_blocks)
        for start, stop in pairwise(sorted(bounds)):
            hidden = started(hidden, parting, start)
            running = [number for number, fork in enumerate(parting) if fork.block <= start and start in blocks[number]]
            groups = [running] if batched and running else [[number] for number in running]
            states = self._run_groups(groups, range(start, stop), hidden, inputs, texts, perturbations)
            for group, state in zip(groups, states, strict=True):
                for number, own in zip(group, split(state, len(group)), strict=True):
                    hidden[number] = own
            if shortcut is not None and stop == shortcut.num_blocks:
                end = shortcut.end(embedded, started(hidden, parting, stop))
                if end is not None:
                    return end
        hidden = started(hidden, parting, num_blocks)
        if shortcut is not None:
            shortcut.ended(hidden)
        return hidden

    def _run_groups(
        self,
        groups: Sequence[Sequence[int]],
        blocks: range,
        hidden: Sequence[Hidden],
        inputs: BlockInputs,
        texts: Sequence[Texts],
        perturbations: Sequence[Sequence[Perturbation]],
    ) -> list[Hidden]:
        """`blocks` for groups of passes, each group a batch; the passes are numbered as in the other arguments."""
        states = [join([hidden[number] for number in group]) for group in groups]
        their_texts = [tuple(texts[number] for number in group) for group in groups]
        samples = [[one for number in group for one in perturbations[number]] for group in groups]
        kept = [per_block(each, blocks, self._device) for each in samples]
        for index, *here in zip(blocks, *kept, strict=True):
            batches = [Batch(*each) for each in zip(states, their_texts, here, strict=True)]
            states = self.transformer_blocks[index](batches, inputs)
        return states

    def head(self, hidden: Hidden, inputs: BlockInputs) -> Velocities:
        """Hidden states after the last block to velocities."""
        return (
            self._velocity(self._video, hidden.video, inputs.video),
            self._velocity(self._audio, hidden.audio, inputs.audio),
        )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations."""
        return self.audio_patchify_proj.weight.dtype  # sound is always there: see sound.py

    @property
    def is_hooked(self) -> bool:
        """Whether something happens around the modules' calls: weights may come for them and go again."""
        return any(module._forward_pre_hooks or module._forward_hooks for module in self.modules())

    @property
    def _device(self) -> torch.device:
        return self.audio_patchify_proj.weight.device

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
        num_tokens, num_timesteps = own.latents.shape[1], own.timesteps.shape[1]
        per_token = own.timestep_index is not None or num_timesteps in (1, num_tokens)
        assert per_token, f"{num_timesteps} timesteps, {num_tokens} tokens and no timestep_index"
        rows, embedded = modules.adaln(own.timesteps * self.config.timestep_scale)
        mask, dtype = own.attention_mask, self.dtype
        return StreamInputs(
            enabled=own.enabled,
            self_bias=None if mask is None else self._remembered(mask, dtype, lambda: self_attention_bias(mask, dtype)),
            modulation=Modulation(rows, own.timestep_index),
            embedded_timestep=Modulation(embedded[:, :, None], own.timestep_index),
            rotary=self._rotary(own.positions, modules.config, modules.config.max_pos),
            cross=None if other is None else self._cross_inputs(modules, own, other),
        )

    def _text_inputs(self, modules: StreamModules, own: ModalityInput) -> TextInputs:
        modulation = None
        if modules.prompt_adaln is not None:
            rows, _ = modules.prompt_adaln(own.sigma[:, None] * self.config.timestep_scale)
            modulation = Modulation(rows)
        context = own.context.to(self.dtype)
        if modules.caption_projection is not None:
            context = modules.caption_projection(context)
        return TextInputs(context, context_bias(own.context_mask, self.dtype), modulation)

    def _cross_inputs(self, modules: StreamModules, own: ModalityInput, other: ModalityInput) -> CrossInputs:
        # The gate follows the noise of what is attended to, in both official versions.
        other_sigma = other.sigma[:, None]
        follows_own = self.cross_timestep == "own"
        rows, _ = modules.cross_adaln((own.timesteps if follows_own else other_sigma) * self.config.timestep_scale)
        gate, _ = modules.cross_gate_adaln(other_sigma * self.config.gate_timestep_scale)
        # Audio and video share time alone, and the heads of audio-video attention are the audio stream's.
        rotary = self._rotary(own.positions, self.config.audio, (self.config.cross_max_pos,))
        return CrossInputs(Modulation(rows, own.timestep_index if follows_own else None), Modulation(gate), rotary)

    def _rotary(self, positions: Tensor, heads: StreamConfig, max_pos: tuple[float, ...]) -> RotaryTable:
        """Of as many first axes of `positions` as `max_pos` has; computed once for the same positions."""

        def table() -> RotaryTable:
            return rotary_table(
                positions[:, : len(max_pos)],
                max_pos,
                width=heads.width,
                num_heads=heads.num_heads,
                theta=self.config.rope_theta,
                double_precision=self.config.rope_double_precision,
                dtype=self.dtype,
            )

        return self._remembered(positions, (heads, max_pos, self.dtype), table)

    def _velocity(self, modules: StreamModules, x: Tensor | None, stream: StreamInputs | None) -> Tensor | None:
        if x is None or stream is None or not stream.enabled:
            return None
        shift, scale = modulation_rows(modules.head_table, stream.embedded_timestep)
        normed = F.layer_norm(x, x.shape[-1:], eps=self.config.norm_eps)
        return modules.head_projection(modulate(normed, shift, scale))

    def _check_perturbations(self, passes: Sequence[TransformerPass]) -> None:
        samples = [one for each in passes for one in each.samples]
        named = {i for one in samples for i in one.skip_video_self_attention | one.skip_audio_self_attention}
        unknown = sorted(named - set(range(self.config.num_layers)))
        if unknown:
            raise ValueError(f"blocks {unknown} to perturb: must be within 0..{self.config.num_layers - 1}")
