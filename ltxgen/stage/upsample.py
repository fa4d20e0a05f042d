"""The latent upscaler: un-normalise, network, normalise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ltxgen.artifacts.safetensors_file import BadFile
from ltxgen.config.errors import Problem
from ltxgen.models.upsampler import LatentUpsampler, UpsamplerConfig
from ltxgen.registry import register
from ltxgen.stage.protocol import PartRequest, RunContext, Setting, Stage

# Of its activations at the larger size, measured at 1536x1024x121: 0.3 GiB.
ACTIVATION_COPIES = 5


@register("stage", "upsample")
@dataclass(frozen=True)
class UpsampleConfig:
    """Which upscaler enlarges which video latent: twice or one and a half times the sides, or twice the frame rate."""

    request_fields: ClassVar = ()

    video: str
    upscaler: Literal["spatial_upscaler", "spatial_upscaler_x1_5", "temporal_upscaler"] = "spatial_upscaler"

    def build(self, name: str, setting: Setting) -> Upsample:
        return Upsample(self, name, setting)


class Upsample(Stage):
    """Reads a video latent (1,C,F,H,W), writes `<name>.video`."""

    def __init__(self, config: UpsampleConfig, name: str, setting: Setting) -> None:
        self.config = config
        self.setting = setting
        self.name = name
        self.reads = (config.video,)
        self.writes = (f"{name}.video",)
        self.size: Sequence[int] = ()  # of the enlarged latent, once `infer` knows it
        self.parts = (PartRequest(config.upscaler, setting.dtype), PartRequest("video_statistics", setting.dtype))

    def infer(self, shapes: dict[str, Any]) -> list[Problem]:
        grid = shapes.get(self.config.video)
        artifact = self.setting.artifacts.get(self.config.upscaler)
        if grid is None or artifact is None:
            return []
        try:
            upsampler = UpsamplerConfig.from_metadata(artifact.config)
        except (BadFile, ValueError):
            return []  # the file's own check says what is wrong with it
        try:
            self.size = shapes[self.writes[0]] = upsampler.output_shape(*grid)
        except ValueError as error:
            return [Problem(f"stages.{self.name}.upscaler", self.config.upscaler, str(error))]
        return []

    def activation_bytes(self, free_bytes: int) -> int:
        channels = UpsamplerConfig.from_metadata(self.setting.artifacts[self.config.upscaler].config).mid_channels
        return ACTIVATION_COPIES * channels * math.prod(self.size) * self.setting.dtype.itemsize

    def describe(self) -> dict[str, Any]:
        return {"upscaler": self.config.upscaler}

    def run(self, state: Mapping[str, Any], parts: Mapping[str, Any], context: RunContext) -> dict[str, Any]:
        statistics = parts["video_statistics"]
        upsampler: LatentUpsampler = parts[self.config.upscaler]
        latents = state[self.config.video]
        enlarged = statistics.normalize(upsampler(statistics.denormalize(latents)))
        context.record(f"{self.name}.video", enlarged)
        return {self.writes[0]: enlarged}
