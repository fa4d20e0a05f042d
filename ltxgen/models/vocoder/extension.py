"""Bandwidth extension: a second generator hears the first sound and adds what lies above its Nyquist frequency.

Shapes: B batch, T mel frames, M mel bins, S samples.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltxgen.models.audio_vae.mel import MEL_FLOOR
from ltxgen.models.audio_vae.resample import resample
from ltxgen.models.vocoder.config import ExtensionConfig, VocoderConfig
from ltxgen.models.vocoder.generator import Generator


class ExtendedVocoder(nn.Module):
    """Stereo log-mel spectrogram to 16 kHz sound to 48 kHz sound.

    Agrees with the official `VocoderWithBWE` (ltx_core/model/audio_vae/vocoder.py).
    """

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        assert config.extension is not None
        self.config = config
        self.hop_length = config.extension.hop_length
        self.vocoder = Generator(config.generator)
        self.bwe_generator = Generator(config.extension.generator)
        self.mel_stft = CausalMel(config.extension)

    @property
    def sampling_rate(self) -> int:
        """Of the sound that comes out, in Hz."""
        return self.config.sampling_rate

    def forward(self, log_mel: Tensor) -> Tensor:
        """(B, 2, T, 64) -> (B, 2, S) in [−1, 1], S = 480·T for the published model."""
        sound = self.vocoder(log_mel)
        samples = sound.shape[-1] * self.sampling_rate // self.vocoder.sampling_rate
        # Whole hops, so that every sample is heard by the second generator.
        sound = F.pad(sound, (0, -sound.shape[-1] % self.hop_length))
        residual = self.bwe_generator(self.mel_stft(sound))
        skip = resample(sound, self.vocoder.sampling_rate, self.sampling_rate, padding="replicate")
        return (residual + skip).clamp(-1, 1)[..., :samples]


class CausalMel(nn.Module):
    """Log-mel spectrogram (B, 2, S) -> (B, 2, S // hop, M) that looks back only, by the checkpoint's own bases."""

    mel_basis: Tensor

    def __init__(self, config: ExtensionConfig) -> None:
        super().__init__()
        self.hop_length = config.hop_length
        self.samples_before = config.n_fft - config.hop_length
        self.stft_fn = FourierBases(config.n_fft)
        self.register_buffer("mel_basis", torch.empty(config.generator.mel_bins, config.n_fft // 2 + 1))

    def forward(self, waveform: Tensor) -> Tensor:
        padded = F.pad(waveform.flatten(0, 1)[:, None], (self.samples_before, 0))
        spectrum = F.conv1d(padded, self.stft_fn.forward_basis, stride=self.hop_length)
        # The upper half of the basis holds the real parts, the lower one the imaginary parts.
        real, imaginary = spectrum.chunk(2, dim=1)
        magnitude = (real.square() + imaginary.square()).sqrt()
        mel = self.mel_basis @ magnitude
        return mel.clamp(min=MEL_FLOOR).log().transpose(1, 2).unflatten(0, waveform.shape[:2])


class FourierBases(nn.Module):
    """Windowed Fourier bases under their official names; the inverse one stands in the file but is never used."""

    forward_basis: Tensor
    inverse_basis: Tensor

    def __init__(self, n_fft: int) -> None:
        super().__init__()
        self.register_buffer("forward_basis", torch.empty(2 * (n_fft // 2 + 1), 1, n_fft))
        self.register_buffer("inverse_basis", torch.empty(2 * (n_fft // 2 + 1), 1, n_fft))
