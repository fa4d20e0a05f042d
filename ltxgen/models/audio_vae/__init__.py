"""The audio VAE of LTX-2 and LTX-2.3: waveforms to log-mel spectrograms to normalised latents, and back to log-mel."""

from ltxgen.models.audio_vae.config import AudioVAEConfig
from ltxgen.models.audio_vae.decoder import AudioDecoder
from ltxgen.models.audio_vae.encoder import AudioEncoder
from ltxgen.models.audio_vae.mel import log_mel_spectrogram, mel_filter_bank, waveform_to_mel
from ltxgen.models.audio_vae.resample import resample

__all__ = [
    "AudioDecoder",
    "AudioEncoder",
    "AudioVAEConfig",
    "log_mel_spectrogram",
    "mel_filter_bank",
    "resample",
    "waveform_to_mel",
]
