"""One audio-video block.

B batch, T tokens, C width of a stream
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltxgen.models.transformer.adaln import modulate, modulation_rows
from ltxgen.models.transformer.attention import Attention, AttentionByRole, AttentionFunction, KeysValues
from ltxgen.models.transformer.config import StreamConfig, TransformerConfig
from ltxgen.models.transformer.inputs import BlockInputs, Hidden, StreamInputs, TextInputs, Texts
from ltxgen.models.transformer.perturbation import BlockPerturbation, Keep

# Rows of `scale_shift_table`: shift, scale, gate each.
SELF_ROWS, FEED_FORWARD_ROWS, TEXT_ROWS = slice(0, 3), slice(3, 6), slice(6, 9)
# Rows of `scale_shift_table_a2v_ca_*`: scale, shift (in this order) for a2v and for v2a, then the gate.
CROSS_ROWS, CROSS_GATE_ROW = slice(0, 4), slice(4, 5)


class GELUProjection(nn.Module):
    """A linear layer and GELU: in two steps, or as `function` does both from input, weight and bias."""

    function: Callable[[Tensor, Tensor, Tensor | None], Tensor] | None = None

    def __init__(self, dim: int, inner_dim: int, *, bias: bool):
        super().__init__()
        self.proj = nn.Linear(dim, inner_dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.function is not None:
            return self.function(x, self.proj.weight, self.proj.bias)
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    def __init__(self, dim: int, *, bias: bool):
        super().__init__()
        # The identity keeps the official numbering, net.0 and net.2.
        self.net = nn.Sequential(
            GELUProjection(dim, 4 * dim, bias=bias), nn.Identity(), nn.Linear(4 * dim, dim, bias=bias)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TextKeys(NamedTuple):
    """One modality's text as a block attends to it."""

    keys_values: KeysValues
    bias: Tensor | None


class BlockTexts(NamedTuple):
    video: TextKeys | None
    audio: TextKeys | None


class Batch(NamedTuple):
    """One pass; or several passes of one sample each as a batch. `texts` has an entry a pass."""

    hidden: Hidden
    texts: tuple[Texts, ...]
    perturbation: BlockPerturbation


class BlockFunctions(NamedTuple):
    """`TransformerBlock.advance` and `project_texts`, or compiled forms of them."""

    advance: Callable[..., Hidden]
    project_texts: Callable[..., BlockTexts]


class TransformerBlock(nn.Module):
    """Self and text attention in each stream, attention between the streams, feed-forward in each stream."""

    prompt_scale_shift_table: nn.Parameter | None
    audio_prompt_scale_shift_table: nn.Parameter | None

    def __init__(self, config: TransformerConfig, attention: AttentionByRole):
        super().__init__()
        self.norm_eps = config.norm_eps
        self.modulates_text = config.cross_attention_adaln
        self.functions = BlockFunctions(TransformerBlock.advance, TransformerBlock.project_texts)
        video, audio = config.video, config.audio

        def attend(query_dim: int, context_dim: int, heads: StreamConfig, function: AttentionFunction) -> Attention:
            return Attention(
                query_dim,
                context_dim,
                num_heads=heads.num_heads,
                head_dim=heads.head_dim,
                gated=config.gated_attention,
                norm_eps=config.norm_eps,
                rope_type=config.rope_type,
                attend=function,
            )

        self.attn1 = attend(video.width, video.width, video, attention.video_self)
        self.attn2 = attend(video.width, video.context_dim, video, attention.video_text)
        self.audio_attn1 = attend(audio.width, audio.width, audio, attention.audio_self)
        self.audio_attn2 = attend(audio.width, audio.context_dim, audio, attention.audio_text)
        # Between the streams, both directions are as wide as the audio stream inside.
        self.audio_to_video_attn = attend(video.width, audio.width, audio, attention.video_from_audio)
        self.video_to_audio_attn = attend(audio.width, video.width, audio, attention.audio_from_video)
        self.ff = FeedForward(video.width, bias=video.ff_bias)
        self.audio_ff = FeedForward(audio.width, bias=audio.ff_bias)

        def table(num_rows: int, width: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(num_rows, width))

        self.scale_shift_table = table(config.num_modulation_rows, video.width)
        self.audio_scale_shift_table = table(config.num_modulation_rows, audio.width)
        self.scale_shift_table_a2v_ca_video = table(5, video.width)
        self.scale_shift_table_a2v_ca_audio = table(5, audio.width)
        self.prompt_scale_shift_table = table(2, video.context_dim) if self.modulates_text else None
        self.audio_prompt_scale_shift_table = table(2, audio.context_dim) if self.modulates_text else None

    def forward(self, batches: Sequence[Batch], inputs: BlockInputs) -> list[Hidden]:
        """The hidden states of every batch after this block.

        One call does a whole step: weights that have to come from elsewhere come once for all its passes, and a text
        that several of them read (the same object) is projected once.
        """
        distinct = {id(text): text for batch in batches for text in batch.texts}
        advance, project_texts = self.functions
        projected = {key: project_texts(self, text) for key, text in distinct.items()}
        return [
            advance(self, hidden, inputs, joined([projected[id(text)] for text in texts]), perturbation)
            for hidden, texts, perturbation in batches
        ]

    def project_texts(self, texts: Texts) -> BlockTexts:
        video, audio = texts
        return BlockTexts(
            None if video is None else self._project_text(video, self.attn2, self.prompt_scale_shift_table),
            None if audio is None else self._project_text(audio, self.audio_attn2, self.audio_prompt_scale_shift_table),
        )

    def advance(
        self, hidden: Hidden, inputs: BlockInputs, texts: BlockTexts, perturbation: BlockPerturbation
    ) -> Hidden:
        """One batch through the block."""
        video, audio = hidden
        video_stream, audio_stream = inputs
        if video is not None and video_stream is not None and video_stream.enabled:
            table = self.scale_shift_table
            video = self._attend_self(video, video_stream, self.attn1, table, perturbation.video_self)
            video = self._attend_text(video, video_stream, self.attn2, table, texts.video)
        if audio is not None and audio_stream is not None and audio_stream.enabled:
            table = self.audio_scale_shift_table
            audio = self._attend_self(audio, audio_stream, self.audio_attn1, table, perturbation.audio_self)
            audio = self._attend_text(audio, audio_stream, self.audio_attn2, table, texts.audio)
        if video is not None and audio is not None and perturbation.across is not False:
            assert video_stream is not None
            assert audio_stream is not None
            video, audio = self._attend_across(video, audio, video_stream, audio_stream, perturbation.across)
        if video is not None and video_stream is not None and video_stream.enabled:
            video = self._feed_forward(video, video_stream, self.ff, self.scale_shift_table)
        if audio is not None and audio_stream is not None and audio_stream.enabled:
            audio = self._feed_forward(audio, audio_stream, self.audio_ff, self.audio_scale_shift_table)
        return Hidden(video, audio)

    def _norm(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=self.norm_eps)

    def _attend_self(self, x: Tensor, stream: StreamInputs, attention: Attention, table: Tensor, keep: Keep) -> Tensor:
        shift, scale, gate = modulation_rows(table[SELF_ROWS], stream.modulation.part(SELF_ROWS))
        normed = modulate(self._norm(x), shift, scale)
        update = attention(
            normed, normed, rotary=stream.rotary, context_rotary=stream.rotary, mask=stream.self_bias, keep=keep
        )
        return x + gate * update

    def _project_text(self, text: TextInputs, attention: Attention, table: Tensor | None) -> TextKeys:
        context = text.context
        if table is not None:
            rows = table.to(context.dtype) if text.modulation is None else modulation_rows(table, text.modulation)
            shift, scale = rows
            context = modulate(context, shift, scale)
        return TextKeys(attention.keys_values(context), text.bias)

    def _attend_text(
        self, x: Tensor, stream: StreamInputs, attention: Attention, table: Tensor, text: TextKeys | None
    ) -> Tensor:
        assert text is not None
        normed = self._norm(x)
        if not self.modulates_text:
            return x + attention.attend_to(normed, text.keys_values, mask=text.bias)
        shift, scale, gate = modulation_rows(table[TEXT_ROWS], stream.modulation.part(TEXT_ROWS))
        return x + gate * attention.attend_to(modulate(normed, shift, scale), text.keys_values, mask=text.bias)

    def _attend_across(
        self, video: Tensor, audio: Tensor, video_stream: StreamInputs, audio_stream: StreamInputs, keep: Keep
    ) -> tuple[Tensor, Tensor]:
        """Both directions start from the streams as they are now: v2a does not see what a2v changed."""
        video_cross, audio_cross = video_stream.cross, audio_stream.cross
        assert video_cross is not None
        assert audio_cross is not None
        video_table, audio_table = self.scale_shift_table_a2v_ca_video, self.scale_shift_table_a2v_ca_audio
        video_rows = modulation_rows(video_table[CROSS_ROWS], video_cross.modulation)
        audio_rows = modulation_rows(audio_table[CROSS_ROWS], audio_cross.modulation)
        video_normed, audio_normed = self._norm(video), self._norm(audio)

        if video_stream.enabled:
            (gate,) = modulation_rows(video_table[CROSS_GATE_ROW], video_cross.gate)
            update = self.audio_to_video_attn(
                modulate(video_normed, scale=video_rows[0], shift=video_rows[1]),
                modulate(audio_normed, scale=audio_rows[0], shift=audio_rows[1]),
                rotary=video_cross.rotary,
                context_rotary=audio_cross.rotary,
            )
            video = _add_where(keep, video, gate * update)
        if audio_stream.enabled:
            (gate,) = modulation_rows(audio_table[CROSS_GATE_ROW], audio_cross.gate)
            update = self.video_to_audio_attn(
                modulate(audio_normed, scale=audio_rows[2], shift=audio_rows[3]),
                modulate(video_normed, scale=video_rows[2], shift=video_rows[3]),
                rotary=audio_cross.rotary,
                context_rotary=video_cross.rotary,
            )
            audio = _add_where(keep, audio, gate * update)
        return video, audio

    def _feed_forward(self, x: Tensor, stream: StreamInputs, feed_forward: FeedForward, table: Tensor) -> Tensor:
        shift, scale, gate = modulation_rows(table[FEED_FORWARD_ROWS], stream.modulation.part(FEED_FORWARD_ROWS))
        return x + gate * feed_forward(modulate(self._norm(x), shift, scale))


def joined(texts: Sequence[BlockTexts]) -> BlockTexts:
    """The texts of passes as one batch; the very object if there is one."""
    if len(texts) == 1:
        return texts[0]

    def stream(each: Sequence[TextKeys | None]) -> TextKeys | None:
        keys = [text for text in each if text is not None]
        if not keys:
            return None
        biases = [text.bias for text in keys if text.bias is not None]
        keys_values = KeysValues(*(torch.cat(tensors) for tensors in zip(*(t.keys_values for t in keys), strict=True)))
        return TextKeys(keys_values, torch.cat(biases) if biases else None)

    return BlockTexts(stream([text.video for text in texts]), stream([text.audio for text in texts]))


def _add_where(keep: Keep, x: Tensor, update: Tensor) -> Tensor:
    return torch.where(keep, x + update, x) if isinstance(keep, Tensor) else x + update
