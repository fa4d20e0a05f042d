"""A clip from a file -> the latents of its picture and sound."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ltxgen.config.errors import MISSING, Problem
from ltxgen.config.schema import PositiveInt
from ltxgen.diffusion.grids import AudioGrid, VideoGrid
from ltxgen.media.clip import ClipFacts, clip_facts, read_frames
from ltxgen.media.sound import BadMedia, read_sound
from ltxgen.models.audio_vae import AudioEncoder
from ltxgen.models.video_vae import VideoEncoder, VideoVAEConfig
from ltxgen.registry import register
from ltxgen.stage.encode_audio import encode_sound, encoding_bytes
from ltxgen.stage.protocol import PartRequest, RunContext, Setting

# Of the encoder's first activation, which is its largest.
ACTIVATION_COPIES = 5
# Of sound beyond the frames that are used: what the spectrogram of the last latent sees, and the rest of a codec's block.
_MARGIN_SECONDS = 1.0


@register("stage", "encode_source")
@dataclass(frozen=True)
class EncodeSourceConfig:
    """`num_frames` takes only the first so many frames of `request.source`; null as many as the request has."""

    num_frames: PositiveInt | None = None

    def build(self, name: str, setting: Setting) -> EncodeSource:
        return EncodeSource(self, name, setting)


class EncodeSource:
    """Writes `<name>.video` (1,C,F,H,W) and `<name>.audio` (1,C,T,M), normalised latents; the latter None for a clip
    without sound.

    Frames of another size than the request's are scaled to cover it, and cut at the sides.
    """

    reads = ()
    size_multiple = VideoGrid.spatial_factor
    num_passes = 0
    makes_stream = False
    work = None
    request_fields = ("source.path",)

    def __init__(self, config: EncodeSourceConfig, name: str, setting: Setting) -> None:
        self.config = config
        self.name = name
        self.setting = setting
        self.path = setting.request.source.path
        self.num_frames = 1  # of the clip's that are used, once `infer` knows
        self.has_sound = True
        self.writes = (f"{name}.video", f"{name}.audio")
        self.parts = (PartRequest("video_encoder", setting.dtype), PartRequest("audio_encoder", setting.dtype))

    def infer(self, shapes: dict[str, Any]) -> list[Problem]:
        if self.path is None:
            return [Problem("request.source.path", MISSING, "is missing; name the clip to start from")]
        try:
            facts = clip_facts(self.path)
        except BadMedia as error:
            return [Problem("request.source.path", self.path, str(error))]
        self.has_sound = facts.has_sound
        self.num_frames = min(self.config.num_frames or facts.num_frames, self.setting.request.num_frames)
        if problems := self._problems(facts):
            return problems
        request = self.setting.request
        if request.height % self.size_multiple or request.width % self.size_multiple:
            return []  # the plan says so, once for all stages
        video, audio = self._grids()
        shapes[f"{self.name}.video"] = (video.frames, video.height, video.width)
        shapes[f"{self.name}.audio"] = (audio.frames,) if facts.has_sound else None
        return []

    def activation_bytes(self, free_bytes: int) -> int:
        config = VideoVAEConfig.from_metadata(self.setting.artifacts["checkpoint"].config["vae"])
        request = self.setting.request
        values = self.num_frames * request.height * request.width // config.patch_size**2
        picture = ACTIVATION_COPIES * config.encoder_base_channels * values * self.setting.dtype.itemsize
        return max(picture, encoding_bytes(self._grids()[1], self.setting))

    def describe(self) -> dict[str, Any]:
        return {"clip": self.path, "frames": self.num_frames, "sound": "yes" if self.has_sound else "none"}

    def run(self, state: Mapping[str, Any], parts: Mapping[str, Any], context: RunContext) -> dict[str, Any]:
        video, audio = self._video(parts["video_encoder"]), self._audio(parts["audio_encoder"])
        context.record(f"{self.name}.video", video)
        if audio is not None:
            context.record(f"{self.name}.audio", audio)
        return {f"{self.name}.video": video, f"{self.name}.audio": audio}

    def _video(self, encoder: VideoEncoder) -> Tensor:
        assert self.path is not None, "infer refuses a request without a clip"
        request, device = self.setting.request, self.setting.device
        frames = read_frames(self.path, self.num_frames).to(device).permute(0, 3, 1, 2)
        # In pieces: all frames in fp32 would take as much as the encoder.
        pixels = torch.cat([self._prepared(piece, request.height, request.width) for piece in frames.split(8)])
        return encoder(pixels.transpose(0, 1)[None])

    def _prepared(self, frames: Tensor, height: int, width: int) -> Tensor:
        return (cover(frames.float(), height, width) / 127.5 - 1).to(self.setting.dtype)

    def _audio(self, encoder: AudioEncoder) -> Tensor | None:
        """As many latents as the frames last; zeros, as the official retake has it, where the sound ends before."""
        assert self.path is not None, "infer refuses a request without a clip"
        sound = read_sound(self.path, 0.0, float(self.num_frames / self.setting.request.fps) + _MARGIN_SECONDS)
        if sound is None:
            return None
        grid = self._grids()[1]
        latents = encode_sound(sound, encoder, self.setting)[:, :, : grid.frames]
        return F.pad(latents, (0, 0, 0, grid.frames - latents.shape[2]))

    def _grids(self) -> tuple[VideoGrid, AudioGrid]:
        request = self.setting.request
        video = VideoGrid.from_pixels(self.num_frames, request.height, request.width)
        return video, AudioGrid.from_video(self.num_frames, request.fps)

    def _problems(self, facts: ClipFacts) -> list[Problem]:
        problems = []
        if self.setting.request.fps != facts.fps:
            message = f"must be the clip's own {facts.fps}, since frames are neither dropped nor made up; use null"
            problems.append(Problem("request.fps", str(self.setting.request.fps), message))
        wanted = self.config.num_frames
        if wanted is not None and wanted > facts.num_frames:
            message = f"must be at most {facts.num_frames}, the frames of '{self.path}'"
            problems.append(Problem(f"stages.{self.name}.num_frames", wanted, message))
        elif self.num_frames % VideoGrid.time_factor != 1:
            below = (self.num_frames - 1) // VideoGrid.time_factor * VideoGrid.time_factor + 1
            message = (
                f"has {self.num_frames} frames to use, which must be 8k + 1; stages.{self.name}.num_frames={below} "
                f"takes the first {below}"
            )
            problems.append(Problem("request.source.path", self.path, message))
        return problems


def cover(frames: Tensor, height: int, width: int) -> Tensor:
    """Frames (F, C, H, W) scaled to cover `height` x `width`, and cut at the sides, evenly.

    Bilinear without antialiasing, as the official `resize_and_center_crop` (ltx_pipelines/utils/media_io.py).
    """
    _, _, H, W = frames.shape
    if (height, width) == (H, W):
        return frames
    scale = max(height / H, width / W)
    scaled = F.interpolate(frames, (math.ceil(H * scale), math.ceil(W * scale)), mode="bilinear", align_corners=False)
    top, left = (scaled.shape[2] - height) // 2, (scaled.shape[3] - width) // 2
    return scaled[:, :, top : top + height, left : left + width]
