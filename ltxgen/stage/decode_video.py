"""Video latents -> frames, tile by tile, made while the writer takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ltxgen.config.errors import MISSING, Problem
from ltxgen.media.pixels import to_uint8
from ltxgen.models.video_vae import (
    Kernels,
    Tiling,
    decode_tiled,
    decoder_for,
    fit_tiling,
    why_not_fused,
)
from ltxgen.registry import register
from ltxgen.runtime.memory import free_device_bytes
from ltxgen.stage.protocol import PartRequest, RunContext, Setting, Stream

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
    """Which latent is decoded; `tiling: null` decodes in one piece, `auto` in tiles that fit a GPU's memory.

    `kernels`: `plain` layers, or `fused` ones for GPUs, or `auto`, which takes the fused ones where they run.
    """

    video: str
    tiling: Literal["auto"] | TilingConfig | None = None
    kernels: Kernels = "plain"

    def build(self, name: str, setting: Setting) -> DecodeVideo:
        return DecodeVideo(self, name, setting)


class DecodeVideo:
    """Reads a video latent (1,C,F,H,W), writes `<name>.frames`: a stream of uint8 frames (f,H,W,3)."""

    size_multiple = 1
    num_passes = 0

    def __init__(self, config: DecodeVideoConfig, name: str, setting: Setting) -> None:
        self.config = config
        self.name = name
        self.reads = (config.video,)
        self.writes = (f"{name}.frames",)
        self.parts = (PartRequest("video_decoder", setting.dtype),)
        self.device, self.dtype = setting.device, setting.dtype
        self.tiling: Tiling | Literal["auto"] | None = "auto"

    def infer(self, shapes: dict[str, Any]) -> list[Problem]:
        problems = []
        try:
            self.tiling = self._fixed_tiling()
        except ValueError as error:
            problems = [Problem(f"stages.{self.name}.tiling", MISSING, line) for line in str(error).splitlines()]
        obstacle = why_not_fused(self.device, self.dtype) if self.config.kernels == "fused" else None
        if obstacle is not None:
            problems.append(Problem(f"stages.{self.name}.kernels", "fused", f"{obstacle}; take auto or plain"))
        return problems

    def describe(self) -> dict[str, Any]:
        tiling = vars(self.tiling) if isinstance(self.tiling, Tiling) else self.tiling
        return {"tiling": tiling, "kernels": self.config.kernels}

    def run(self, state: Mapping[str, Any], parts: Mapping[str, Any], context: RunContext) -> dict[str, Any]:
        latents = state[self.config.video]
        decoder, cost = decoder_for(parts["video_decoder"], latents, self.config.kernels)
        if self.tiling == "auto":
            free = free_device_bytes(latents.device)
            self.tiling = fit_tiling(cost, latents.shape[2:], int(_SHARE_OF_FREE_MEMORY * free))
        return {self.writes[0]: Stream(map(to_uint8, decode_tiled(decoder, latents, self.tiling)))}

    def _fixed_tiling(self) -> Tiling | Literal["auto"] | None:
        """Known before the run unless it depends on a GPU's free memory."""
        match self.config.tiling:
            case "auto":
                return "auto" if self.device.type == "cuda" else _ON_CPU
            case None:
                return None
            case tiling:
                return tiling.build()
