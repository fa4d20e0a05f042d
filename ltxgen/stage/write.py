"""Frames and sound -> video.mp4 and contact_sheet.png."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from ltxgen.config.errors import MISSING, Problem
from ltxgen.config.schema import Check
from ltxgen.media.background import Background
from ltxgen.media.images import ContactSheet
from ltxgen.media.mp4 import Mp4Settings, Mp4Writer, check_encoders
from ltxgen.registry import register
from ltxgen.stage.protocol import RunContext, Setting, Stage

Preset = Literal[
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo"
]


@register("stage", "write")
@dataclass(frozen=True)
class WriteConfig:
    """H.264 by libx264 (`crf` from 0, lossless, to 51) and AAC."""

    request_fields: ClassVar = ("num_frames", "fps")

    frames: str
    waveform: str
    crf: Annotated[int, Check("must be between 0 (lossless) and 51", lambda crf: 0 <= crf <= 51)] = 19
    preset: Preset = "veryfast"

    def build(self, name: str, setting: Setting) -> Write:
        return Write(self, name, setting)


class Write(Stage):
    """Reads frames and sound, writes files only."""

    writes = ()

    def __init__(self, config: WriteConfig, name: str, setting: Setting) -> None:
        self.config = config
        self.name = name
        self.request = setting.request
        self.reads = (config.frames, config.waveform)

    def infer(self, shapes: dict[str, Any]) -> list[Problem]:
        missing = check_encoders()
        if missing:
            what = f"this PyAV has no encoder for {', '.join(missing)}; reinstall it from PyPI (`pip install av`)"
            return [Problem(f"stages.{self.name}", MISSING, what)]
        wanted, given = self.request.num_frames, shapes.get(self.config.frames, self.request.num_frames)
        if given == wanted:
            return []
        message = (
            f"holds {given} frames and the request asks for {wanted}: have a temporal upscaler's latent decoded, or "
            "set the `rate` of the stage that makes it to 1"
        )
        return [Problem(f"stages.{self.name}.frames", self.config.frames, message)]

    def describe(self) -> dict[str, Any]:
        return {"files": ["video.mp4", "contact_sheet.png"]}

    def run(self, state: Mapping[str, Any], parts: Mapping[str, Any], context: RunContext) -> dict[str, Any]:
        frames, sound = state[self.config.frames], state[self.config.waveform]
        sheet = ContactSheet(self.request.num_frames, self.request.fps)
        settings = Mp4Settings(crf=self.config.crf, preset=self.config.preset)
        context.progress.begin(self.request.num_frames, unit="frame")
        recorded = []
        with Mp4Writer(context.folder / "video.mp4", self.request.fps, settings) as writer:

            def encode(chunk: Tensor) -> None:
                writer.write_frames(chunk)
                context.progress.advance(len(chunk))

            # The next chunk is decoded while these two work on the last one.
            with Background(encode) as encoder, Background(sheet.add_frames) as painter:
                for chunk in frames:
                    encoder(chunk)
                    painter(chunk)
                    if context.records:
                        recorded.append(chunk.cpu())
            writer.write_audio(sound.waveform, sound.sample_rate)
            writer.comment = context.about()
        sheet.set_audio(sound.waveform, sound.sample_rate)
        sheet.save(context.folder / "contact_sheet.png")
        if recorded:
            context.record("frames", torch.cat(recorded))
        return {}
