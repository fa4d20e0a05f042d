"""Log-mel spectrograms of given sound, as the audio encoder was trained on.

Shapes: B batch, S samples, T mel frames, M mel bins.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ltxgen.models.audio_vae.config import AudioVAEConfig
from ltxgen.models.audio_vae.resample import resample

# Quieter bins are lifted to this before the logarithm.
MEL_FLOOR = 1e-5

# The Slaney mel scale (Malcolm Slaney's Auditory Toolbox): linear up to 1 kHz, logarithmic above.
_HERTZ_PER_MEL = 200 / 3
_BREAK_HERTZ = 1000.0
_BREAK_MEL = _BREAK_HERTZ / _HERTZ_PER_MEL
_LOG_STEP = math.log(6.4) / 27


def waveform_to_mel(waveform: Tensor, sampling_rate: int, config: AudioVAEConfig) -> Tensor:
    """Sound (B, 2, S) in [−1, 1] at `sampling_rate` to the log-mel spectrogram (B, 2, T, 64) that `AudioEncoder` reads.

    Raises ValueError where the number of channels is not the model's, or the sound is too short for one window.
    """
    if waveform.shape[1] != config.audio_channels:
        raise ValueError(f"audio has {waveform.shape[1]} channels: must have {config.audio_channels}")
    resampled = resample(waveform, sampling_rate, config.sampling_rate)
    if resampled.shape[-1] <= config.n_fft // 2:
        milliseconds = 1000 * (config.n_fft // 2 + 1) / config.sampling_rate
        raise ValueError(f"audio has {waveform.shape[-1]} samples: must last at least {milliseconds:.0f} ms")
    return log_mel_spectrogram(resampled, config)


def log_mel_spectrogram(waveform: Tensor, config: AudioVAEConfig) -> Tensor:
    """(B, 2, S) at `config.sampling_rate` -> (B, 2, T, M) fp32, T = S // hop + 1; ln of mel-weighted magnitudes.

    Agrees with the official `AudioProcessor` (ltx_core/model/audio_vae), which builds on torchaudio.
    """
    flat = waveform.float().flatten(0, 1)
    spectrum = torch.stft(
        flat,
        n_fft=config.n_fft,
        hop_length=config.hop_length,
        window=torch.hann_window(config.n_fft, device=flat.device),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    filters = mel_filter_bank(config.n_fft // 2 + 1, config.mel_bins, config.sampling_rate)
    mel = filters.to(flat) @ spectrum.abs()
    return mel.clamp(min=MEL_FLOOR).log().transpose(1, 2).unflatten(0, waveform.shape[:2])


def mel_filter_bank(num_frequencies: int, mel_bins: int, sampling_rate: int) -> Tensor:
    """Slaney mel filters (M, num_frequencies) fp64, from 0 Hz to half of `sampling_rate`, each of area 1 Hz."""
    nyquist = sampling_rate / 2
    frequencies = torch.linspace(0, nyquist, num_frequencies, dtype=torch.float64)
    edges = _mel_to_hertz(torch.linspace(0, _hertz_to_mel(nyquist), mel_bins + 2, dtype=torch.float64))
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising = (frequencies - left) / (centre - left)
    falling = (right - frequencies) / (right - centre)
    return torch.minimum(rising, falling).clamp(min=0) * (2 / (right - left))


def _hertz_to_mel(hertz: float) -> float:
    if hertz < _BREAK_HERTZ:
        return hertz / _HERTZ_PER_MEL
    return _BREAK_MEL + math.log(hertz / _BREAK_HERTZ) / _LOG_STEP


def _mel_to_hertz(mel: Tensor) -> Tensor:
    above = _BREAK_HERTZ * torch.exp((mel - _BREAK_MEL) * _LOG_STEP)
    return torch.where(mel < _BREAK_MEL, mel * _HERTZ_PER_MEL, above)
