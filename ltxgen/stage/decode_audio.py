"""Audio latents -> log-mel -> waveform."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ltxgen.media.sound import Sound
from ltxgen.models.vocoder import VocoderConfig
from ltxgen.registry import register
from ltxgen.stage.protocol import PartRequest, RunContext, Setting, Stage

# Of the vocoder's widest activation, which its filters also hold at twice the rate; measured for 5 s of sound: 0.1 GiB.
ACTIVATION_COPIES = 6


@register("stage", "decode_audio")
@dataclass(frozen=True)
class DecodeAudioConfig:
    """`source` names the denoise stage whose sound is kept, or is `last`; null lets `runtime.numerics` choose (base or
    refine, where the recipe has them)."""

    request_fields: ClassVar = ("num_frames", "fps")

    source: str | None = None

    def build(self, name: str, setting: Setting) -> DecodeAudio:
        return DecodeAudio(self, name, setting)


class DecodeAudio(Stage):
    """Reads an audio latent (1,8,T,16), writes `<name>.waveform`."""

    def __init__(self, config: DecodeAudioConfig, name: str, setting: Setting) -> None:
        self.source = config.source or setting.numerics.decoded_audio
        if self.source == "last" or (config.source is None and self.source not in setting.denoised):
            self.source = setting.last_denoised
        self.reads = (f"{self.source}.audio",)
        self.writes = (f"{name}.waveform",)
        vocoder_dtype = setting.numerics.vocoder_dtype or setting.dtype
        self.setting = setting
        self.vocoder_dtype = vocoder_dtype
        self.parts = (PartRequest("audio_decoder", setting.dtype), PartRequest("vocoder", vocoder_dtype))

    def activation_bytes(self, free_bytes: int) -> int:
        vocoder = VocoderConfig.from_metadata(self.setting.artifacts["checkpoint"].config["vocoder"])
        seconds = float(self.setting.request.num_frames / self.setting.request.fps)
        return int(ACTIVATION_COPIES * vocoder.widest_values(seconds) * self.vocoder_dtype.itemsize)

    def describe(self) -> dict[str, Any]:
        return {"source": self.source}

    def run(self, state: Mapping[str, Any], parts: Mapping[str, Any], context: RunContext) -> dict[str, Any]:
        decoder, vocoder = parts["audio_decoder"], parts["vocoder"]
        mel = decoder(state[self.reads[0]])
        waveform = vocoder(mel.to(next(vocoder.parameters()).dtype)).float()
        context.record("audio.mel", mel)
        context.record("audio.waveform", waveform)
        return {self.writes[0]: Sound(waveform, vocoder.sampling_rate)}
