"""Video latents -> frames, tile by tile, made while the writer takes them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ltxgen.config.errors import MISSING, Problem
from ltxgen.diffusion.grids import VideoGrid
from ltxgen.media.pixels import to_uint8
from ltxgen.models.fusing import why_not_fused
from ltxgen.models.video_vae import (
    Decoder,
    Kernels,
    Tiling,
    VideoVAEConfig,
    blend_tiles,
    decode_cost,
    decoder_for,
    fit_tiling,
    least_bytes,
    list_tiles,
    tile_decoder,
)
from ltxgen.parallel.tiles import TileParallel
from ltxgen.registry import register
from ltxgen.runtime.memory import free_device_bytes
from ltxgen.stage.protocol import PartRequest, RunContext, Setting, Stage, Stream

Join = Callable[[Iterator[Tensor]], Iterator[Tensor]]
"""Of decoded tiles, to chunks of the video."""

NUM_CHANNELS = 3  # red, green, blue
# The rest is for what the model of memory leaves out: the sound's decoder, fragments.
_SHARE_OF_FREE_MEMORY = 0.85
# What `auto` means without a GPU: the sizes of the current official code.
_ON_CPU = Tiling(spatial_tile_px=768, spatial_overlap_px=64, temporal_tile_frames=80, temporal_overlap_frames=24)


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
    """Which latent is decoded; null is that of the last denoise stage.

    `tiling: null` decodes in one piece, `auto` in tiles that fit a GPU's memory. `kernels`: `plain` layers, or `fused`
    ones for GPUs, or `auto`, which takes the fused ones where they run.
    """

    request_fields: ClassVar = ()

    video: str | None = None
    tiling: Literal["auto"] | TilingConfig | None = None
    kernels: Kernels = "auto"

    def build(self, name: str, setting: Setting) -> DecodeVideo:
        return DecodeVideo(self, name, setting)


class DecodeVideo(Stage):
    """Reads a video latent (1,C,F,H,W), writes `<name>.frames`: a stream of uint8 frames (f,H,W,3)."""

    makes_stream = True

    def __init__(self, config: DecodeVideoConfig, name: str, setting: Setting) -> None:
        self.config = config
        self.name = name
        self.setting = setting
        self.size: Sequence[int] | None = None  # of the latent, which `infer` is told
        self.tiling: Tiling | Literal["auto"] | None = "auto"  # until `infer`, or until the run where memory decides
        self.source = config.video or f"{setting.last_denoised}.video"
        self.reads = (self.source,)
        self.writes = (f"{name}.frames",)
        self.parts = (PartRequest("video_decoder", setting.dtype),)

    def infer(self, shapes: dict[str, Any]) -> list[Problem]:
        self.size = shapes.get(self.source)
        if self.size is not None:
            shapes[self.writes[0]] = VideoGrid(*self.size).num_frames
        where = f"stages.{self.name}"
        problems = []
        try:
            self.tiling = self._planned_tiling()
        except ValueError as error:
            problems = [Problem(f"{where}.tiling", MISSING, line) for line in str(error).splitlines()]
        if self.tiling == "auto" and self.setting.parallel and self.setting.parallel.shape.num_ranks > 1:
            what = "fits tiles to one GPU's free memory and not to several's; give the sizes of tiles, or null"
            problems.append(Problem(f"{where}.tiling", "auto", what))
        obstacle = why_not_fused(self.setting.device, self.setting.dtype)
        if self.config.kernels == "fused" and obstacle is not None:
            problems.append(Problem(f"{where}.kernels", "fused", f"{obstacle}; take auto or plain"))
        return problems

    def activation_bytes(self, free_bytes: int) -> int:
        assert self.size is not None, "asked of plans that can run"
        config = VideoVAEConfig.from_metadata(self.setting.artifacts["checkpoint"].config["vae"])
        cost = decode_cost(config, self.setting.device, self.setting.dtype, self.config.kernels)
        if self.tiling != "auto":
            return cost.peak_bytes(self.size, self.tiling)
        usable = max(int(_SHARE_OF_FREE_MEMORY * free_bytes), least_bytes(cost, self.size))
        return cost.peak_bytes(self.size, fit_tiling(cost, self.size, usable))

    def describe(self) -> dict[str, Any]:
        described: dict[str, Any] = {
            "tiling": vars(self.tiling) if isinstance(self.tiling, Tiling) else self.tiling,
            "kernels": self._described_kernels(),
        }
        if self.size is None or self.setting.parallel is None or self.tiling == "auto":
            return described
        deal = self.setting.parallel.deal_tiles(list_tiles(self.size, self.tiling))
        described["tiles"] = deal.counts
        if received := deal.received_bytes(NUM_CHANNELS * self.setting.dtype.itemsize):
            described["received bytes on rank 0"] = {"tiles": received}
        return described

    def run(self, state: Mapping[str, Any], parts: Mapping[str, Any], context: RunContext) -> dict[str, Any]:
        latents: Tensor = state[self.source]
        assert self.setting.parallel is not None, "a plan that can run knows its ranks"
        decoder, cost = decoder_for(parts["video_decoder"], latents, self.config.kernels)
        if self.tiling == "auto":
            free = free_device_bytes(latents.device)
            self.tiling = fit_tiling(cost, latents.shape[2:], int(_SHARE_OF_FREE_MEMORY * free))
        tiles = list_tiles(latents.shape[2:], self.tiling)
        parallel = self.setting.parallel.tiles(tiles, self.setting.device.type)
        join = functools.partial(blend_tiles, size=latents.shape[2:], tiling=self.tiling)
        return {self.writes[0]: Stream(self._frames(decoder, latents, parallel, join, context))}

    def _frames(
        self, decoder: Decoder, latents: Tensor, parallel: TileParallel, join: Join, context: RunContext
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
            join=join,
        )
        # Not a loop, whose variable would keep each chunk alive while the next one is made.
        yield from context.watcher.learn(latents, map(rounded, chunks))
        if exact:
            context.record(f"{self.name}.frames", torch.cat(exact))
        context.report("communication", parallel.communication)

    def _planned_tiling(self) -> Tiling | Literal["auto"] | None:
        """Known before the run unless it depends on a GPU's free memory."""
        match self.config.tiling:
            case "auto":
                return "auto" if self.setting.device.type == "cuda" else _ON_CPU
            case None:
                return None
            case tiling:
                return tiling.build()

    def _described_kernels(self) -> str:
        obstacle = why_not_fused(self.setting.device, self.setting.dtype)
        match self.config.kernels:
            case "auto":
                return "fused" if obstacle is None else f"plain (fused ones {obstacle})"
            case kernels:
                return kernels
