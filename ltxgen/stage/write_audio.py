"""Sound alone -> sound.wav."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ltxgen.media.sound import write_wav
from ltxgen.registry import register
from ltxgen.stage.protocol import RunContext, Setting, Stage

FILE = "sound.wav"


@register("stage", "write_audio")
@dataclass(frozen=True)
class WriteAudioConfig:
    """Which sound is written, in 16 bits."""

    request_fields: ClassVar = ()

    waveform: str

    def build(self, name: str, setting: Setting) -> WriteAudio:
        return WriteAudio(self)


class WriteAudio(Stage):
    """Reads a sound, writes a file only."""

    writes = ()

    def __init__(self, config: WriteAudioConfig) -> None:
        self.reads = (config.waveform,)

    def describe(self) -> dict[str, Any]:
        return {"files": [FILE]}

    def run(self, state: Mapping[str, Any], parts: Mapping[str, Any], context: RunContext) -> dict[str, Any]:
        sound = state[self.reads[0]]
        write_wav(context.folder / FILE, sound)
        return {}
