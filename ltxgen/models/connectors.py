"""The text connector: a 1-D transformer between the projected text features and the text attention of the transformer.

B batch, S sequence (1024), C width = heads * head dim, R learnable registers (128)

Keys and results agree with the official `Embeddings1DConnector` (ltx-core, text_encoders/gemma).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltxgen.models.transformer.attention import Attention, sdpa
from ltxgen.models.transformer.block import FeedForward
from ltxgen.models.transformer.rope import RopeType, RotaryTable, rotary_table

NORM_EPS = 1e-6
ROPE_THETA = 10000.0


@dataclass(frozen=True)
class ConnectorConfig:
    """Sizes and variants of one connector. The defaults stand for keys that the metadata leaves out."""

    num_heads: int = 30
    head_dim: int = 128
    num_layers: int = 2
    gated_attention: bool = False
    rope_type: RopeType = "split"
    rope_double_precision: bool = False
    max_position: float = 1
    num_registers: int = 128  # fixed in the official reader, which ignores `connector_num_learnable_registers`

    def __post_init__(self) -> None:
        if self.rope_type not in ("split", "interleaved"):
            raise ValueError(f"transformer.rope_type = {self.rope_type!r}: must be one of split, interleaved")
        if self.head_dim % 2:
            raise ValueError(f"connector head dim = {self.head_dim}: must be an even number, RoPE rotates pairs")

    @property
    def width(self) -> int:
        return self.num_heads * self.head_dim

    @classmethod
    def for_video(cls, config: Mapping[str, Any]) -> Self:
        """Read the video connector from `config["transformer"]` of a checkpoint's metadata."""
        return cls._from_section(config, prefix="")

    @classmethod
    def for_audio(cls, config: Mapping[str, Any]) -> Self:
        """Read the audio connector from `config["transformer"]`; layers, gate and RoPE are the video connector's."""
        return cls._from_section(config, prefix="audio_")

    @classmethod
    def _from_section(cls, section: Mapping[str, Any], prefix: str) -> Self:
        if "transformer" in section:
            # Every key has a default, so the wrong dict would pass for LTX-2.
            raise ValueError("this is the whole config of a checkpoint: the connectors read its `transformer` section")
        max_positions = section.get("connector_positional_embedding_max_pos", [cls.max_position])
        if len(max_positions) != 1 or max_positions[0] <= 0:
            raise ValueError(
                f"transformer.connector_positional_embedding_max_pos = {max_positions}: must be one number above 0"
            )
        return cls(
            num_heads=section.get(f"{prefix}connector_num_attention_heads", cls.num_heads),
            head_dim=section.get(f"{prefix}connector_attention_head_dim", cls.head_dim),
            num_layers=section.get("connector_num_layers", cls.num_layers),
            gated_attention=section.get("connector_apply_gated_attention", cls.gated_attention),
            rope_type=section.get("rope_type", cls.rope_type),
            rope_double_precision=section.get("frequencies_precision") == "float64",
            max_position=max_positions[0],
        )


class Connector(nn.Module):
    """Packs the real tokens to the front, fills up with learnable registers, and runs the blocks over all positions."""

    def __init__(self, config: ConnectorConfig) -> None:
        super().__init__()
        self.config = config
        self.learnable_registers = nn.Parameter(torch.empty(config.num_registers, config.width))
        self.transformer_1d_blocks = nn.ModuleList(ConnectorBlock(config) for _ in range(config.num_layers))

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Turn `features` (B, S, C) with `mask` (B, S), non-zero on real tokens, into the text context (B, S, C).

        Every position of the result is meant to be attended to, so there is no mask to hand on. Rows may differ in
        their number of real tokens, and padding may stand on either side.
        """
        x = self._fill_with_registers(features, mask)
        rotary = self._rotary_table(x)
        for block in self.transformer_1d_blocks:
            x = block(x, rotary)
        return _rms(x)

    def _fill_with_registers(self, features: Tensor, mask: Tensor) -> Tensor:
        """Position p holds the p-th real token, or register p mod R (not p - num_real) where there is none left."""
        is_real = mask.bool()
        real_first = torch.argsort((~is_real).to(torch.uint8), dim=1, stable=True)  # (B, S), tokens keep their order
        packed = features.gather(1, real_first[..., None].expand_as(features))
        positions = torch.arange(features.shape[1], device=features.device)
        registers = self.learnable_registers[positions % len(self.learnable_registers)].to(features.dtype)  # (S, C)
        holds_token = positions < is_real.sum(dim=1, keepdim=True)  # (B, S)
        return torch.where(holds_token[..., None], packed, registers)

    def _rotary_table(self, x: Tensor) -> RotaryTable:
        """Tables of positions 0 .. S-1; they are points and not intervals, so both bounds are the position itself."""
        positions = torch.arange(x.shape[1], dtype=torch.float32, device=x.device)
        return rotary_table(
            positions[None, None, :, None].expand(1, 1, -1, 2),
            (self.config.max_position,),
            width=self.config.width,
            num_heads=self.config.num_heads,
            theta=ROPE_THETA,
            double_precision=self.config.rope_double_precision,
            dtype=x.dtype,
        )


class ConnectorBlock(nn.Module):
    """Pre-norm self attention and feed-forward; the norms have no weights."""

    def __init__(self, config: ConnectorConfig) -> None:
        super().__init__()
        self.attn1 = Attention(
            config.width,
            config.width,
            num_heads=config.num_heads,
            head_dim=config.head_dim,
            gated=config.gated_attention,
            norm_eps=NORM_EPS,
            rope_type=config.rope_type,
            attend=sdpa,
        )
        self.ff = FeedForward(config.width, bias=True)

    def forward(self, x: Tensor, rotary: RotaryTable) -> Tensor:
        normed = _rms(x)
        x = x + self.attn1(normed, normed, rotary=rotary, context_rotary=rotary)
        return x + self.ff(_rms(x))


def _rms(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], eps=NORM_EPS)
