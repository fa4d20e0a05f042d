"""The latents of a clip -> what of them a denoise stage keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ltxgen.config.errors import MISSING, Problem
from ltxgen.diffusion.conditions import Condition, Frozen, GivenTokens, total_appended
from ltxgen.diffusion.grids import AudioGrid, VideoGrid
from ltxgen.diffusion.pair import Pair
from ltxgen.diffusion.positions import audio_positions, video_positions
from ltxgen.registry import register
from ltxgen.stage.protocol import RunContext, Setting, Stage

Tokens = tuple[Condition, ...]


@register("stage", "condition_source")
@dataclass(frozen=True)
class ConditionSourceConfig:
    """What is kept of the clip that the stage `source` encoded: what lies outside `request.span`, or `all` of it, which
    the rest of the request's frames is added to."""

    source: str
    keep: Literal["outside_span", "all"]

    @property
    def request_fields(self) -> tuple[str, ...]:
        return ("num_frames", "fps") if self.keep == "all" else ("num_frames", "fps", "span", "regenerate")

    def build(self, name: str, setting: Setting) -> ConditionSource:
        return ConditionSource(self, name, setting)


class ConditionSource(Stage):
    """Reads the latents of a clip, writes `<name>.conditions`."""

    def __init__(self, config: ConditionSourceConfig, name: str, setting: Setting) -> None:
        self.config = config
        self.name = name
        self.request = setting.request
        self.device = setting.device
        self.reads = (f"{config.source}.video", f"{config.source}.audio")
        self.writes = (f"{name}.conditions",)

    def infer(self, shapes: dict[str, Any]) -> list[Problem]:
        shapes[self.writes[0]] = total_appended([])
        if self.reads[0] not in shapes:
            return []  # the clip's own problems come first
        (num_latents, _, _), has_sound = shapes[self.reads[0]], shapes[self.reads[1]] is not None
        num_frames = (num_latents - 1) * VideoGrid.time_factor + 1
        if self.config.keep == "all":
            return self._extension_problems(num_frames)
        return [*self._span_problems(num_frames), *self._regenerate_problems(has_sound)]

    def describe(self) -> dict[str, Any]:
        if self.config.keep == "all":
            return {"keeps": "all of the clip"}
        return {"span": list(self.request.span or ()), "regenerates": list(self.request.regenerate)}

    def run(self, state: Mapping[str, Any], parts: Mapping[str, Any], context: RunContext) -> dict[str, Any]:
        video, audio = (state[name] for name in self.reads)
        grid = VideoGrid(*video.shape[2:])
        sound: Tokens = ()
        if audio is not None:
            sound_grid = AudioGrid(audio.shape[2])
            sound = self._kept("audio", sound_grid.patchify(audio), audio_positions(sound_grid))
        picture = self._kept("video", grid.patchify(video), video_positions(grid, self.request.fps))
        return {self.writes[0]: Pair(picture, sound)}

    def _kept(self, modality: str, tokens: Tensor, positions: Tensor) -> Tokens:
        if self.config.keep == "all":
            return (GivenTokens(tokens, 0, 0.0),)
        if modality not in self.request.regenerate:
            return (Frozen(tokens, "kept"),)
        assert self.request.span is not None, "infer refuses a retake without a span"
        begins, ends = self.request.span
        starts, stops = positions[0, 0].unbind(-1)
        inside = (stops > begins) & (starts < ends)
        return (GivenTokens(tokens, 0, inside.float().to(self.device)),)

    def _span_problems(self, num_frames: int) -> list[Problem]:
        request = self.request
        if num_frames < request.num_frames:
            message = f"is more than the clip's {num_frames}; give at most those, or null for all"
            return [Problem("request.num_frames", request.num_frames, message)]
        seconds = float(num_frames / request.fps)
        allowed = f"must be [start, end] in seconds, within the {seconds:.3f} s of the clip"
        if request.span is None:
            return [Problem("request.span", MISSING, f"is missing; it {allowed}")]
        last = seconds + float(1 / request.fps)  # lengths are easily rounded up
        if len(request.span) != 2 or not request.span[0] < request.span[1] <= last or request.span[0] >= seconds:
            return [Problem("request.span", list(request.span), allowed)]
        return []

    def _regenerate_problems(self, has_sound: bool) -> list[Problem]:
        regenerate = list(self.request.regenerate)
        if not regenerate:
            return [Problem("request.regenerate", regenerate, "must name what is made anew: video, audio, or both")]
        if not has_sound and "audio" not in regenerate:
            message = "the clip has no sound that could be kept; add audio, which makes one for its whole length"
            return [Problem("request.regenerate", regenerate, message)]
        return []

    def _extension_problems(self, num_frames: int) -> list[Problem]:
        if num_frames < self.request.num_frames:
            return []
        message = f"must be more than the {num_frames} frames of the clip, which it counts as well"
        return [Problem("request.num_frames", self.request.num_frames, message)]
