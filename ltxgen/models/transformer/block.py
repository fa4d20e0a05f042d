"""One audio-video block.

B batch, T tokens, C width of a stream
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ltxgen.models.transformer.adaln import modulate
from ltxgen.models.transformer.attention import Attention, AttentionByRole, AttentionFunction, KeysValues
from ltxgen.models.transformer.config import StreamConfig, TransformerConfig
from ltxgen.models.transformer.elementwise import TORCH, Elementwise, Residual, Wanted
from ltxgen.models.transformer.float8 import Activation, Forms, forms_for, linear
from ltxgen.models.transformer.inputs import BlockInputs, Hidden, StreamInputs, TextInputs, Texts
from ltxgen.models.transformer.perturbation import BlockPerturbation, Keep

# Rows of `scale_shift_table`: shift, scale, gate each.
SELF_ROWS, FEED_FORWARD_ROWS, TEXT_ROWS = slice(0, 3), slice(3, 6), slice(6, 9)
# Rows of `scale_shift_table_a2v_ca_*`: scale, shift (in this order) for a2v and for v2a, then the gate.
CROSS_ROWS, CROSS_GATE_ROW = slice(0, 4), slice(4, 5)


class FeedForward(nn.Module):
    def __init__(self, dim: int, *, bias: bool):
        super().__init__()
        self.elementwise: Elementwise = TORCH
        # The official numbering: net.0.proj and net.2.
        into = nn.ModuleDict({"proj": nn.Linear(dim, 4 * dim, bias=bias)})
        self.net = nn.ModuleList([into, nn.Identity(), nn.Linear(4 * dim, dim, bias=bias)])

    @property
    def forms(self) -> Forms:
        """The forms in which `x` is read."""
        return forms_for(self.net.get_submodule("0.proj"))

    def forward(self, x: Activation) -> Tensor:
        into, out = self.net.get_submodule("0.proj"), self.net[2]
        return linear(out, self.elementwise.gelu_linear(into, x, forms_for(out)))


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
        self.elementwise: Elementwise = TORCH
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
        video, audio = [None if x is None else Residual(x) for x in hidden]
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
        added = self.elementwise.added
        return Hidden(None if video is None else added(video), None if audio is None else added(audio))

    def _attend_self(
        self, stream: Residual, inputs: StreamInputs, attention: Attention, table: Tensor, keep: Keep
    ) -> Residual:
        shift, scale, gate = self.elementwise.rows(table[SELF_ROWS], inputs.modulation.part(SELF_ROWS))
        x, (normed,) = self.elementwise.normed(stream, self.norm_eps, Wanted(shift, scale, attention.self_forms))
        update = attention(
            normed, normed, rotary=inputs.rotary, context_rotary=inputs.rotary, mask=inputs.self_bias, keep=keep
        )
        return Residual(x, update, gate)

    def _project_text(self, text: TextInputs, attention: Attention, table: Tensor | None) -> TextKeys:
        context: Activation = text.context
        if table is not None and text.modulation is None:
            shift, scale = table.to(text.context.dtype)
            context = modulate(text.context, shift, scale)
        elif table is not None and text.modulation is not None:
            shift, scale = self.elementwise.rows(table, text.modulation)
            context = self.elementwise.modulated(text.context, Wanted(shift, scale, attention.context_forms))
        return TextKeys(attention.keys_values(context), text.bias)

    def _attend_text(
        self, stream: Residual, inputs: StreamInputs, attention: Attention, table: Tensor, text: TextKeys | None
    ) -> Residual:
        assert text is not None
        shift = scale = gate = None
        if self.modulates_text:
            shift, scale, gate = self.elementwise.rows(table[TEXT_ROWS], inputs.modulation.part(TEXT_ROWS))
        x, (normed,) = self.elementwise.normed(stream, self.norm_eps, Wanted(shift, scale, attention.query_forms))
        return Residual(x, attention.attend_to(normed, text.keys_values, mask=text.bias), gate)

    def _attend_across(
        self, video: Residual, audio: Residual, video_inputs: StreamInputs, audio_inputs: StreamInputs, keep: Keep
    ) -> tuple[Residual, Residual]:
        """Both directions start from the streams as they are now: v2a does not see what a2v changed."""
        video_cross, audio_cross = video_inputs.cross, audio_inputs.cross
        assert video_cross is not None
        assert audio_cross is not None
        video_table, audio_table = self.scale_shift_table_a2v_ca_video, self.scale_shift_table_a2v_ca_audio
        rows, normed = self.elementwise.rows, self.elementwise.normed
        a2v, v2a = self.audio_to_video_attn, self.video_to_audio_attn

        scale, shift, other_scale, other_shift = rows(video_table[CROSS_ROWS], video_cross.modulation)
        to_video, of_video = Wanted(shift, scale, a2v.query_forms), Wanted(other_shift, other_scale, v2a.context_forms)
        video_x, (a2v_queries, v2a_context) = normed(video, self.norm_eps, to_video, of_video)
        scale, shift, other_scale, other_shift = rows(audio_table[CROSS_ROWS], audio_cross.modulation)
        of_audio, to_audio = Wanted(shift, scale, a2v.context_forms), Wanted(other_shift, other_scale, v2a.query_forms)
        audio_x, (a2v_context, v2a_queries) = normed(audio, self.norm_eps, of_audio, to_audio)

        video, audio = Residual(video_x), Residual(audio_x)
        if video_inputs.enabled:
            (gate,) = rows(video_table[CROSS_GATE_ROW], video_cross.gate)
            update = a2v(a2v_queries, a2v_context, rotary=video_cross.rotary, context_rotary=audio_cross.rotary)
            video = Residual(video_x, update, gate, keep)
        if audio_inputs.enabled:
            (gate,) = rows(audio_table[CROSS_GATE_ROW], audio_cross.gate)
            update = v2a(v2a_queries, v2a_context, rotary=audio_cross.rotary, context_rotary=video_cross.rotary)
            audio = Residual(audio_x, update, gate, keep)
        return video, audio

    def _feed_forward(
        self, stream: Residual, inputs: StreamInputs, feed_forward: FeedForward, table: Tensor
    ) -> Residual:
        shift, scale, gate = self.elementwise.rows(table[FEED_FORWARD_ROWS], inputs.modulation.part(FEED_FORWARD_ROWS))
        x, (normed,) = self.elementwise.normed(stream, self.norm_eps, Wanted(shift, scale, feed_forward.forms))
        return Residual(x, feed_forward(normed), gate)


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
