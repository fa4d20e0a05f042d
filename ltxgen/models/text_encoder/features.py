"""Feature extractors: from the stacked hidden states of the text encoder to the inputs of the two connectors.

Shapes: B batch, S sequence, D text width (3840), L states (49), W connector width (4096 video, 2048 audio in LTX-2.3).
Flattening is D major and L minor everywhere, index = L·d + l, which is the memory order of the stack on its last axis:
no copy is made at 1024 × 188160.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from torch import Tensor, nn

from ltxgen.models.connectors import ConnectorConfig

EPS = 1e-6
# Present with these values in LTX-2.3, all absent in LTX-2; the official reader knows nothing between.
_V2_KEYS = {
    "caption_proj_before_connector": True,
    "caption_projection_first_linear": False,
    "caption_projection_second_linear": False,
    "caption_proj_input_norm": False,
}


@dataclass(frozen=True)
class FeatureExtractorConfig:
    """Which extractor a checkpoint needs, and its sizes."""

    version: Literal["v1", "v2"]
    text_width: int
    num_states: int
    video_width: int
    audio_width: int

    @classmethod
    def from_metadata(cls, config: Mapping[str, Any], num_states: int = 49) -> Self:
        """Read the `transformer` part of a checkpoint's metadata config; `num_states` is the text encoder's layers + 1.

        Raises ValueError when the caption keys describe neither LTX-2 (V1) nor LTX-2.3 (V2).
        """
        text_width = config.get("caption_channels", 3840)
        video_width = ConnectorConfig.for_video(config).width
        audio_width = ConnectorConfig.for_audio(config).width
        version = _version(config)
        if version == "v1" and not video_width == audio_width == text_width:
            raise ValueError(
                f"connector widths {video_width} (video) and {audio_width} (audio): a checkpoint without the "
                f"caption_proj keys shares one projection, so both must equal caption_channels = {text_width}"
            )
        return cls(version, text_width, num_states, video_width, audio_width)

    def build(self) -> "FeatureExtractorV1 | FeatureExtractorV2":
        return FeatureExtractorV1(self) if self.version == "v1" else FeatureExtractorV2(self)


def _version(config: Mapping[str, Any]) -> Literal["v1", "v2"]:
    found = {key: config[key] for key in _V2_KEYS if key in config}
    if not found:
        return "v1"
    if found == _V2_KEYS:
        return "v2"
    raise ValueError(f"caption keys {found}: must be all absent (LTX-2) or exactly {_V2_KEYS} (LTX-2.3)")


class FeatureExtractorV2(nn.Module):
    """LTX-2.3: every state of every token is brought to unit RMS, then projected once per modality."""

    video_aggregate_embed: nn.Linear | None

    def __init__(self, config: FeatureExtractorConfig) -> None:
        super().__init__()
        in_features = config.text_width * config.num_states
        self.text_width = config.text_width
        self.video_aggregate_embed = nn.Linear(in_features, config.video_width)
        self.audio_aggregate_embed = nn.Linear(in_features, config.audio_width)

    def without_video(self) -> Self:
        """This extractor itself, for recipes of sound alone: half of the input of the connectors."""
        self.video_aggregate_embed = None
        return self

    def forward(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor | None, Tensor]:
        """`hidden` (B,S,D,L) and `mask` (B,S), non-zero on real tokens -> (B,S,W_video), (B,S,W_audio).

        Rows of pads come out as the bias; the connectors replace them.
        """
        inverse_rms = (hidden.square().mean(dim=2, keepdim=True) + EPS).rsqrt()
        normed = (hidden * inverse_rms).flatten(2)
        normed.masked_fill_(~mask.bool()[..., None], 0)
        video = None if self.video_aggregate_embed is None else self._project(self.video_aggregate_embed, normed)
        return video, self._project(self.audio_aggregate_embed, normed)

    def _project(self, linear: nn.Linear, normed: Tensor) -> Tensor:
        # Scaling the input and not the weight keeps the official rounding in bf16.
        return linear(normed * math.sqrt(linear.out_features / self.text_width))


class FeatureExtractorV1(nn.Module):
    """LTX-2: every state is centred and divided by its range over the real tokens; one projection serves both."""

    def __init__(self, config: FeatureExtractorConfig) -> None:
        super().__init__()
        self.aggregate_embed = nn.Linear(config.text_width * config.num_states, config.video_width, bias=False)

    def forward(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """`hidden` (B,S,D,L) and `mask` (B,S), non-zero on real tokens -> the same (B,S,W) for video and audio."""
        is_pad = ~mask.bool()[..., None, None]
        num_entries = mask.bool().sum(dim=1).view(-1, 1, 1, 1) * hidden.shape[2]
        mean = hidden.masked_fill(is_pad, 0).sum(dim=(1, 2), keepdim=True) / (num_entries + EPS)
        low = hidden.masked_fill(is_pad, math.inf).amin(dim=(1, 2), keepdim=True)
        high = hidden.masked_fill(is_pad, -math.inf).amax(dim=(1, 2), keepdim=True)
        normed = (8 * (hidden - mean) / (high - low + EPS)).masked_fill_(is_pad, 0).flatten(2)
        features = self.aggregate_embed(normed.to(hidden.dtype))  # the mean is float32, its count is no bf16 number
        return features, features
