"""Video latents -> frames, tile by tile, made while the writer takes them."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ltxgen.config.errors import MISSING, Problem
from ltxgen.media.pixels import to_uint8
from ltxgen.models.video_vae import Tiling, VideoDecoder, blend_tiles, list_tiles, tile_decoder
from ltxgen.parallel.tiles import TileParallel
from ltxgen.registry import register
from ltxgen.stage.protocol import PartRequest, RunContext, Setting, Stream

NUM_CHANNELS = 3  # red, green, blue


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
        self.setting = setting
        self.size: Sequence[int] | None = None  # of the latent, which `infer` is told
        self.reads = (config.video,)
        self.writes = (f"{name}.frames",)
        self.parts = (PartRequest("video_decoder", setting.dtype),)

    def infer(self, shapes: dict[str, Any]) -> list[Problem]:
        self.size = shapes.get(self.config.video)
        try:
            _ = self.tiling
        except ValueError as error:
            return [Problem(f"stages.{self.name}.tiling", MISSING, line) for line in str(error).splitlines()]
        return []

    @property
    def tiling(self) -> Tiling | None:
        """Raises ValueError for sizes that don't fit the latent grid."""
        return self.config.tiling.build() if self.config.tiling else None

    def describe(self) -> dict[str, Any]:
        described: dict[str, Any] = {"tiling": vars(self.config.tiling) if self.config.tiling else None}
        if self.size is None or self.setting.parallel is None:
            return described
        deal = self.setting.parallel.deal_tiles(list_tiles(self.size, self.tiling))
        described["tiles"] = deal.counts
        if received := deal.received_bytes(NUM_CHANNELS * self.setting.dtype.itemsize):
            described["received bytes on rank 0"] = {"tiles": received}
        return described

    def run(self, state: Mapping[str, Any], parts: Mapping[str, Any], context: RunContext) -> dict[str, Any]:
        latents: Tensor = state[self.config.video]
        assert self.setting.parallel is not None, "a plan that can run knows its ranks"
        tiles = list_tiles(latents.shape[2:], self.tiling)
        parallel = self.setting.parallel.tiles(tiles, self.setting.device.type)
        return {self.writes[0]: Stream(self._frames(parts["video_decoder"], latents, parallel, context))}

    def _frames(
        self, decoder: VideoDecoder, latents: Tensor, parallel: TileParallel, context: RunContext
    ) -> Iterator[Tensor]:
        """On the first rank uint8 frames (f,H,W,3), chunk by chunk; on the others none."""
        exact: list[Tensor] = []

        def rounded(chunk: Tensor) -> Tensor:
            if context.records:
                exact.append(chunk[0].float().clamp(-1, 1).permute(1, 2, 3, 0).cpu())
            return to_uint8(chunk)

        chunks = parallel.stream(
            decode=tile_decoder(decoder, latents),
            empty=lambda tile: latents.new_empty((len(latents), NUM_CHANNELS, *tile.video_size)),
            join=functools.partial(blend_tiles, size=latents.shape[2:], tiling=self.tiling),
        )
        # Not a loop, whose variable would keep each chunk alive while the next one is made.
        yield from map(rounded, chunks)
        if exact:
            context.record(f"{self.name}.frames", torch.cat(exact))
        context.report("communication", parallel.communication)
