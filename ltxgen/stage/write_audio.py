"""Sound alone -> sound.wav."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ltxgen.config.errors import Problem
from ltxgen.media.sound import write_wav
from ltxgen.registry import register
from ltxgen.stage.protocol import PartRequest, RunContext, Setting

FILE = "sound.wav"


@register("stage", "write_audio")
@dataclass(frozen=True)
class WriteAudioConfig:
    """Which sound is written, in 16 bits."""

    request_fields: ClassVar = ()

    waveform: str

    def build(self, name: str, setting: Setting) -> WriteAudio:
        return WriteAudio(self)


class WriteAudio:
    """Reads a sound, writes a file only."""

    writes = ()
    size_multiple = 1
    num_passes = 0
    makes_stream = False
    work = None
    parts: tuple[PartRequest, ...] = ()

    def __init__(self, config: WriteAudioConfig) -> None:
        self.reads = (config.waveform,)

    def infer(self, shapes: dict[str, Any]) -> list[Problem]:
        return []

    def activation_bytes(self, free_bytes: int) -> int:
        return 0

    def describe(self) -> dict[str, Any]:
        return {"files": [FILE]}

    def run(self, state: Mapping[str, Any], parts: Mapping[str, Any], context: RunContext) -> dict[str, Any]:
        sound = state[self.reads[0]]
        write_wav(context.folder / FILE, sound)
        return {}
