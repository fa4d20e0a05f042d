"""A clip from a file -> the latents of its picture and sound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ltxgen.config.errors import MISSING, Problem
from ltxgen.config.schema import PositiveInt
from ltxgen.diffusion.grids import AudioGrid, VideoGrid
from ltxgen.media.clip import ClipFacts, clip_facts, read_frames
from ltxgen.media.fit import Fit, to_encoder
from ltxgen.media.sound import BadMedia, read_sound
from ltxgen.models.audio_vae import AudioEncoder
from ltxgen.models.video_vae import Tiling, VideoEncoder, VideoVAEConfig, encode_cost, encode_tiled, encoder_for
from ltxgen.registry import register
from ltxgen.stage.decode_video import TilingConfig
from ltxgen.stage.encode_audio import encode_sound, encoding_bytes
from ltxgen.stage.protocol import PartRequest, RunContext, Setting, Stage

_FRAMES_AT_ONCE = 8  # fp32 copies are made of so many frames and not of the whole clip
# Of sound behind the last frame: what the spectrogram of the last latent sees, and the rest of a codec's block.
_MARGIN_SECONDS = 1.0


@register("stage", "encode_source")
@dataclass(frozen=True)
class EncodeSourceConfig:
    """`num_frames` takes only the first so many frames of `request.source`, null as many as the request has. Frames of
    another size are made to fit by `fit`, and encoded in tiles of `tiling` or, if that is null, in one piece."""

    request_fields: ClassVar = ("source", "height", "width", "num_frames", "fps")

    num_frames: PositiveInt | None = None
    fit: Fit = "cover"
    tiling: TilingConfig | None = None

    def build(self, name: str, setting: Setting) -> EncodeSource:
        return EncodeSource(self, name, setting)


class EncodeSource(Stage):
    """Writes `<name>.video` (1,C,F,H,W) and `<name>.audio` (1,C,T,M), normalised latents; the latter None for a clip
    without sound."""

    reads = ()
    size_multiple = VideoGrid.spatial_factor

    def __init__(self, config: EncodeSourceConfig, name: str, setting: Setting) -> None:
        self.config = config
        self.name = name
        self.setting = setting
        self.path = setting.request.source.path
        self.num_frames = 1  # of the clip's that are used, once `infer` knows
        self.has_sound = True
        self.writes = (f"{name}.video", f"{name}.audio")
        self.parts = (PartRequest("video_encoder", setting.dtype), PartRequest("audio_encoder", setting.dtype))

    @property
    def file(self) -> Path:
        assert self.path is not None, "infer refuses a request without a clip"
        return Path(self.path).expanduser()

    @property
    def video_grid(self) -> VideoGrid:
        return VideoGrid.from_pixels(self.num_frames, self.setting.request.height, self.setting.request.width)

    @property
    def audio_grid(self) -> AudioGrid:
        return AudioGrid.from_video(self.num_frames, self.setting.request.fps)

    def infer(self, shapes: dict[str, Any]) -> list[Problem]:
        if self.path is None:
            return [Problem("request.source.path", MISSING, "is missing; name the clip to start from")]
        try:
            facts = clip_facts(self.file)
        except BadMedia as error:
            return [Problem("request.source.path", self.path, str(error))]
        request = self.setting.request
        self.has_sound = facts.has_sound
        self.num_frames = min(self.config.num_frames or facts.num_frames, request.num_frames)
        problems = [*self._length_problems(facts), *self._tiling_problems()]
        if request.fps != facts.fps:
            message = f"must be the clip's own {facts.fps}, since frames are neither dropped nor made up; use null"
            problems.append(Problem("request.fps", str(request.fps), message))
        if problems or request.height % self.size_multiple or request.width % self.size_multiple:
            return problems  # of sizes the plan says so, once for all stages
        grid = self.video_grid
        shapes[f"{self.name}.video"] = (grid.frames, grid.height, grid.width)
        shapes[f"{self.name}.audio"] = (self.audio_grid.frames,) if facts.has_sound else None
        return []

    def activation_bytes(self, free_bytes: int) -> int:
        config = VideoVAEConfig.from_metadata(self.setting.artifacts["checkpoint"].config["vae"])
        cost, grid = encode_cost(config, self.setting.device, self.setting.dtype), self.video_grid
        picture = cost.peak_bytes((grid.frames, grid.height, grid.width), self._tiling())
        return max(picture, encoding_bytes(self.audio_grid, self.setting))

    def describe(self) -> dict[str, Any]:
        return {"clip": self.path, "frames": self.num_frames, "sound": "yes" if self.has_sound else "none"}

    def run(self, state: Mapping[str, Any], parts: Mapping[str, Any], context: RunContext) -> dict[str, Any]:
        values = {"video": self._video(parts["video_encoder"]), "audio": self._audio(parts["audio_encoder"])}
        written = {f"{self.name}.{modality}": value for modality, value in values.items()}
        for name, value in written.items():
            if value is not None:
                context.record(name, value)
        return written

    def _video(self, encoder: VideoEncoder) -> Tensor:
        request, dtype = self.setting.request, self.setting.dtype
        frames = read_frames(self.file, self.num_frames)
        fitted = [
            to_encoder(some, request.height, request.width, self.config.fit).to(dtype)
            for some in frames.split(_FRAMES_AT_ONCE)
        ]
        encode, _ = encoder_for(encoder)
        return encode_tiled(encode, torch.cat(fitted, dim=2), self._tiling())

    def _audio(self, encoder: AudioEncoder) -> Tensor | None:
        """As many latents as the frames last; zeros, as the official retake has it, where the sound ends before."""
        sound = read_sound(self.file, 0.0, float(self.num_frames / self.setting.request.fps) + _MARGIN_SECONDS)
        if sound is None:
            return None
        num_latents = self.audio_grid.frames
        latents = encode_sound(sound, encoder, self.setting)[:, :, :num_latents]
        return F.pad(latents, (0, 0, 0, num_latents - latents.shape[2]))

    def _tiling(self) -> Tiling | None:
        return None if self.config.tiling is None else self.config.tiling.build()

    def _length_problems(self, facts: ClipFacts) -> list[Problem]:
        wanted, factor = self.config.num_frames, VideoGrid.time_factor
        if wanted is not None and wanted > facts.num_frames:
            message = f"must be at most {facts.num_frames}, the frames of '{self.path}'"
            return [Problem(f"stages.{self.name}.num_frames", wanted, message)]
        if self.num_frames % factor == 1:
            return []
        below = (self.num_frames - 1) // factor * factor + 1
        message = (
            f"has {self.num_frames} frames to use, which must be 8k + 1; stages.{self.name}.num_frames={below} takes "
            f"the first {below}"
        )
        return [Problem("request.source.path", self.path, message)]

    def _tiling_problems(self) -> list[Problem]:
        try:
            if tiling := self._tiling():
                tiling.check_for_encoding()
        except ValueError as error:
            where = f"stages.{self.name}.tiling"
            return [Problem(where, MISSING, line) for line in str(error).splitlines()]
        return []
