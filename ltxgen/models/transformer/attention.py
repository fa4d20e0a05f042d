"""Multi-head attention with RMS-normed queries and keys, RoPE and per-head gates.

B batch, Tq query tokens, Tk key tokens, H heads, D head dim, C width
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltxgen.models.transformer.perturbation import Keep
from ltxgen.models.transformer.rope import RopeType, RotaryTable, rotate

AttentionFunction = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""(q (B, H, Tq, D), k (B, H, Tk, D), v (B, H, Tk, D), additive mask broadcastable to (B, H, Tq, Tk) or None)
to (B, H, Tq, D), scaled by D^-0.5."""


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@dataclass(frozen=True)
class AttentionByRole:
    """The function behind each of a block's six attentions."""

    video_self: AttentionFunction = sdpa
    audio_self: AttentionFunction = sdpa
    video_text: AttentionFunction = sdpa
    audio_text: AttentionFunction = sdpa
    video_from_audio: AttentionFunction = sdpa
    audio_from_video: AttentionFunction = sdpa


class KeysValues(NamedTuple):
    """What an attention reads of its context: normed and rotated keys, and values, each (B, H, Tk, D)."""

    keys: Tensor
    values: Tensor


class Attention(nn.Module):
    def __init__(
        self,
        query_dim: int,
        context_dim: int,
        *,
        num_heads: int,
        head_dim: int,
        gated: bool,
        norm_eps: float,
        rope_type: RopeType,
        attend: AttentionFunction,
    ):
        super().__init__()
        inner_dim = num_heads * head_dim
        self.num_heads = num_heads
        self.rope_type: RopeType = rope_type
        self.attend = attend
        self.to_q = nn.Linear(query_dim, inner_dim)
        self.to_k = nn.Linear(context_dim, inner_dim)
        self.to_v = nn.Linear(context_dim, inner_dim)
        self.q_norm = nn.RMSNorm(inner_dim, eps=norm_eps)
        self.k_norm = nn.RMSNorm(inner_dim, eps=norm_eps)
        self.to_out = nn.ModuleList([nn.Linear(inner_dim, query_dim)])
        self.to_gate_logits = nn.Linear(query_dim, num_heads) if gated else None

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        *,
        rotary: RotaryTable | None = None,
        context_rotary: RotaryTable | None = None,
        mask: Tensor | None = None,
        keep: Keep = True,
    ) -> Tensor:
        """x (B, Tq, C) attends to context (B, Tk, C'); for self attention they are the same tensor.

        Samples not in `keep` get their values in place of the attention result, which needs Tq = Tk.
        """
        if keep is False:
            return self._output(x, self._values(context))
        return self.attend_to(x, self.keys_values(context, context_rotary), rotary=rotary, mask=mask, keep=keep)

    def keys_values(self, context: Tensor, rotary: RotaryTable | None = None) -> KeysValues:
        return KeysValues(self._rotated(self.k_norm(self.to_k(context)), rotary), self._values(context))

    def attend_to(
        self,
        x: Tensor,
        context: KeysValues,
        *,
        rotary: RotaryTable | None = None,
        mask: Tensor | None = None,
        keep: Keep = True,
    ) -> Tensor:
        """As `forward`, with the context's keys and values computed before. `keep` is not False."""
        q = self._rotated(self.q_norm(self.to_q(x)), rotary)
        out = self.attend(q, context.keys, context.values, mask)
        if isinstance(keep, Tensor):
            out = torch.where(keep[..., None], out, context.values)
        return self._output(x, out)

    def _values(self, context: Tensor) -> Tensor:
        return self._heads(self.to_v(context)).transpose(1, 2)

    def _rotated(self, normed: Tensor, rotary: RotaryTable | None) -> Tensor:
        """(B, T, H·D), whose norm spans all heads, to (B, H, T, D)."""
        heads = self._heads(normed)
        if rotary is not None:
            heads = rotate(heads, rotary, self.rope_type)
        return heads.transpose(1, 2)

    def _output(self, x: Tensor, out: Tensor) -> Tensor:
        out = out.transpose(1, 2)  # (B, Tq, H, D)
        if self.to_gate_logits is not None:
            # Twice the sigmoid: a logit of zero is neutral.
            out = out * (2 * self.to_gate_logits(x).sigmoid())[..., None]
        return self.to_out[0](out.flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1))  # (B, T, H, D), the order in memory
