"""Multi-head attention with RMS-normed queries and keys, RoPE and per-head gates.

B batch, Tq query tokens, Tk key tokens, H heads, D head dim, C width
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltxgen.models.transformer.elementwise import TORCH, Elementwise, Heads
from ltxgen.models.transformer.float8 import Activation, Forms, forms_for, linear
from ltxgen.models.transformer.perturbation import Keep
from ltxgen.models.transformer.rope import RopeType, RotaryTable

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
        self.elementwise: Elementwise = TORCH
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

    @property
    def query_forms(self) -> Forms:
        """The forms in which `x` is read."""
        return forms_for(self.to_q, self.to_gate_logits)

    @property
    def context_forms(self) -> Forms:
        return forms_for(self.to_k, self.to_v)

    @property
    def self_forms(self) -> Forms:
        """Of a tensor that attends to itself."""
        return forms_for(self.to_q, self.to_k, self.to_v, self.to_gate_logits)

    def forward(
        self,
        x: Activation,
        context: Activation,
        *,
        rotary: RotaryTable | None = None,
        context_rotary: RotaryTable | None = None,
        mask: Tensor | None = None,
        keep: Keep = True,
    ) -> Tensor:
        """x (B, Tq, C) attends to context (B, Tk, C'); for self attention they are the same object.

        Samples not in `keep` get their values in place of the attention result, which needs Tq = Tk.
        """
        if keep is False:
            return self._output(x, self._values(context))
        if x is context and rotary is context_rotary:
            q, k = self._heads(rotary, self._queries(x), self._keys(context))
            return self._attended(x, q, KeysValues(k, self._values(context)), mask, keep)
        return self.attend_to(x, self.keys_values(context, context_rotary), rotary=rotary, mask=mask, keep=keep)

    def keys_values(self, context: Activation, rotary: RotaryTable | None = None) -> KeysValues:
        (k,) = self._heads(rotary, self._keys(context))
        return KeysValues(k, self._values(context))

    def attend_to(
        self,
        x: Activation,
        context: KeysValues,
        *,
        rotary: RotaryTable | None = None,
        mask: Tensor | None = None,
        keep: Keep = True,
    ) -> Tensor:
        """As `forward`, with the context's keys and values computed before. `keep` is not False."""
        (q,) = self._heads(rotary, self._queries(x))
        return self._attended(x, q, context, mask, keep)

    def _attended(self, x: Activation, q: Tensor, context: KeysValues, mask: Tensor | None, keep: Keep) -> Tensor:
        out = self.attend(q, context.keys, context.values, mask)
        if isinstance(keep, Tensor):
            out = torch.where(keep[..., None], out, context.values)
        return self._output(x, out)

    def _queries(self, x: Activation) -> Heads:
        return Heads(linear(self.to_q, x), self.q_norm)

    def _keys(self, context: Activation) -> Heads:
        return Heads(linear(self.to_k, context), self.k_norm)

    def _values(self, context: Activation) -> Tensor:
        # (B, T, H, D) is the order in memory
        return linear(self.to_v, context).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _heads(self, rotary: RotaryTable | None, *projected: Heads) -> Sequence[Tensor]:
        return self.elementwise.heads(projected, self.num_heads, rotary, self.rope_type)

    def _output(self, x: Activation, out: Tensor) -> Tensor:
        (to_out,) = self.to_out
        heads = out.transpose(1, 2)  # (B, Tq, H, D)
        if self.to_gate_logits is None:
            return to_out(heads.flatten(2))
        return linear(to_out, self.elementwise.gated(heads, linear(self.to_gate_logits, x), forms_for(to_out)))
