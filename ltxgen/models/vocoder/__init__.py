"""Vocoders: log-mel spectrograms to waveforms, for LTX-2.3 (48 kHz, with bandwidth extension) and LTX-2 (24 kHz)."""

from ltxgen.models.vocoder.config import ExtensionConfig, GeneratorConfig, VocoderConfig
from ltxgen.models.vocoder.extension import ExtendedVocoder
from ltxgen.models.vocoder.generator import Generator


def Vocoder(config: VocoderConfig) -> Generator | ExtendedVocoder:  # noqa: N802 - it stands for two classes
    """The module for `config`: log-mel (B, 2, T, 64) to sound (B, 2, S) in [−1, 1] at its `sampling_rate`.

    It runs in the dtype of its weights; the newer official code takes fp32, as bf16 is audible.
    """
    return Generator(config.generator) if config.extension is None else ExtendedVocoder(config)


__all__ = ["ExtendedVocoder", "ExtensionConfig", "Generator", "GeneratorConfig", "Vocoder", "VocoderConfig"]
