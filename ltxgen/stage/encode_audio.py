"""A sound from a file -> audio latents that a video is made for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ltxgen.config.errors import MISSING, Problem
from ltxgen.diffusion.conditions import Frozen, total_appended
from ltxgen.diffusion.grids import AudioGrid
from ltxgen.diffusion.pair import Pair
from ltxgen.media.sound import BadMedia, Sound, read_sound
from ltxgen.models.audio_vae import AudioEncoder, waveform_to_mel
from ltxgen.registry import register
from ltxgen.stage.protocol import PartRequest, RunContext, Setting, Stage

# Of one of the encoder's first activations.
ACTIVATION_COPIES = 5


@register("stage", "encode_audio")
@dataclass(frozen=True)
class EncodeAudioConfig:
    """Nothing to choose: `request.audio` says which sound."""

    request_fields: ClassVar = ("audio", "num_frames", "fps")

    def build(self, name: str, setting: Setting) -> EncodeAudio:
        return EncodeAudio(name, setting)


class EncodeAudio(Stage):
    """Writes `<name>.waveform`, the sound itself, and `<name>.conditions`: its latents, which aren't generated."""

    reads = ()

    def __init__(self, name: str, setting: Setting) -> None:
        self.setting = setting
        self.given = setting.request.audio
        self.writes = (f"{name}.waveform", f"{name}.conditions")
        self.parts = (PartRequest("audio_encoder", setting.dtype),)

    @property
    def grid(self) -> AudioGrid:
        return AudioGrid.from_video(self.setting.request.num_frames, self.setting.request.fps)

    def infer(self, shapes: dict[str, Any]) -> list[Problem]:
        shapes[self.writes[1]] = total_appended([])
        if self.given.path is None:
            return [Problem("request.audio.path", MISSING, "is missing; name the sound that the video is made for")]
        try:
            sound = self._read()
        except BadMedia as error:
            return [Problem("request.audio.path", self.given.path, str(error))]
        if AudioGrid.from_samples(sound.waveform.shape[-1], sound.sample_rate).frames >= self.grid.frames:
            return []
        request = self.setting.request
        found = f"gives {sound.seconds:.2f} s from {self.given.start_seconds:g} s on"
        if self.given.duration_seconds is not None:
            found += f" for {self.given.duration_seconds:g} s"
        message = (
            f"{found}, and the video lasts {float(request.num_frames / request.fps):.2f} s; ask for a shorter video "
            "(request.num_frames), an earlier start or more of the sound, or give a longer sound"
        )
        return [Problem("request.audio.path", self.given.path, message)]

    def activation_bytes(self, free_bytes: int) -> int:
        return encoding_bytes(self.grid, self.setting)

    def describe(self) -> dict[str, Any]:
        return {"sound": self.given.path}

    def run(self, state: Mapping[str, Any], parts: Mapping[str, Any], context: RunContext) -> dict[str, Any]:
        sound = self._read()
        latents = encode_sound(sound, parts["audio_encoder"], self.setting)[:, :, : self.grid.frames]
        context.record("audio.waveform", sound.waveform)
        context.record("source.audio", latents)
        waveform, conditions = self.writes
        return {waveform: sound, conditions: Pair((), (Frozen(self.grid.patchify(latents), "given"),))}

    def _read(self) -> Sound:
        """The wanted part, by default as long as the video. Raises BadMedia."""
        request = self.setting.request
        seconds = self.given.duration_seconds or float(request.num_frames / request.fps)
        assert self.given.path is not None, "infer refuses a request without a sound"
        sound = read_sound(Path(self.given.path).expanduser(), self.given.start_seconds, seconds)
        if sound is None:
            raise BadMedia("has no sound; give a file with sound")
        return sound


def encode_sound(sound: Sound, encoder: AudioEncoder, setting: Setting) -> Tensor:
    """Normalised latents (1, C, T, M) of all of a sound; resampling and spectrogram are computed in fp32."""
    mel = waveform_to_mel(sound.waveform.to(setting.device, torch.float32), sound.sample_rate, encoder.config)
    return encoder(mel.to(setting.dtype))


def encoding_bytes(grid: AudioGrid, setting: Setting) -> int:
    """What encoding a sound of this grid takes beside weights."""
    config = setting.artifacts["checkpoint"].config["audio_vae"]["model"]["params"]["ddconfig"]
    columns = grid.frames * grid.time_factor
    return ACTIVATION_COPIES * config["ch"] * columns * grid.mel_bins * grid.time_factor * setting.dtype.itemsize
