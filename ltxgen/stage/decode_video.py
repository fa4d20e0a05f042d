"""Video latents -> frames, tile by tile, made while the writer takes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ltxgen.config.errors import MISSING, Problem
from ltxgen.media.pixels import to_uint8
from ltxgen.models.video_vae import Tiling, VideoDecoder, decode_tiled
from ltxgen.registry import register
from ltxgen.stage.protocol import PartRequest, RunContext, Setting, Stream


@dataclass(frozen=True)
class TilingConfig:
    """Pixels and frames of a tile and of the overlap between neighbours; an axis whose tile is null is not cut."""

    spatial_tile_px: int | None = None
    spatial_overlap_px: int = 0
    temporal_tile_frames: int | None = None
    temporal_overlap_frames: int = 0

    def build(self) -> Tiling:
        """Raises ValueError for sizes that don't fit the latent grid."""
        return Tiling(**vars(self))


@register("stage", "decode_video")
@dataclass(frozen=True)
class DecodeVideoConfig:
    """Which latent is decoded; `tiling: null` decodes in one piece."""

    video: str
    tiling: TilingConfig | None = None

    def build(self, name: str, setting: Setting) -> DecodeVideo:
        return DecodeVideo(self, name, setting)


class DecodeVideo:
    """Reads a video latent (1,C,F,H,W), writes `<name>.frames`: a stream of uint8 frames (f,H,W,3)."""

    size_multiple = 1
    num_passes = 0
    work = None

    def __init__(self, config: DecodeVideoConfig, name: str, setting: Setting) -> None:
        self.config = config
        self.name = name
        self.reads = (config.video,)
        self.writes = (f"{name}.frames",)
        self.parts = (PartRequest("video_decoder", setting.dtype),)

    def infer(self, shapes: dict[str, Any]) -> list[Problem]:
        try:
            if self.config.tiling is not None:
                self.config.tiling.build()
        except ValueError as error:
            return [Problem(f"stages.{self.name}.tiling", MISSING, line) for line in str(error).splitlines()]
        return []

    def describe(self) -> dict[str, Any]:
        return {"tiling": vars(self.config.tiling) if self.config.tiling else None}

    def run(self, state: Mapping[str, Any], parts: Mapping[str, Any], context: RunContext) -> dict[str, Any]:
        return {self.writes[0]: Stream(self._frames(parts["video_decoder"], state[self.config.video]))}

    def _frames(self, decoder: VideoDecoder, latents: Tensor) -> Iterator[Tensor]:
        if self.config.tiling is None:
            yield to_uint8(decoder(latents))
            return
        for chunk in decode_tiled(decoder, latents, self.config.tiling.build()):
            yield to_uint8(chunk)
