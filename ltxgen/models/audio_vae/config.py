"""What the `audio_vae` part of a checkpoint's metadata says about the audio VAE and its mel spectrograms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class AudioVAEConfig:
    """Sizes of both halves and of the spectrogram between waveform and latents (lengths in samples)."""

    sampling_rate: int = 16000
    hop_length: int = 160
    n_fft: int = 1024
    mel_bins: int = 64
    audio_channels: int = 2
    latent_channels: int = 8
    base_channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 2, 4)
    num_res_blocks: int = 2

    @classmethod
    def from_metadata(cls, config: Mapping[str, Any]) -> Self:
        """Read `config["audio_vae"]` of a checkpoint; absent keys take the defaults of the official reader.

        Raises ValueError naming each key whose value is not supported.
        """
        params = config.get("model", {}).get("params", {})
        network = params.get("ddconfig", {})
        preprocessing = config.get("preprocessing", {})
        stft, mel = preprocessing.get("stft", {}), preprocessing.get("mel", {})
        sampling_rate = params.get("sampling_rate", 16000)
        n_fft = stft.get("filter_length", 1024)
        audio_channels = network.get("in_channels", 2)
        multipliers = tuple(network.get("ch_mult", (1, 2, 4)))

        # (where, value, the only one built here). The defaults are those of the official reader, which adds
        # attention to the middle block unless it is told not to.
        fixed = [
            ("model.params.ddconfig.norm_type", network.get("norm_type", "pixel"), "pixel"),
            ("model.params.ddconfig.causality_axis", network.get("causality_axis", "height"), "height"),
            ("model.params.ddconfig.mid_block_add_attention", network.get("mid_block_add_attention", True), False),
            ("model.params.ddconfig.double_z", network.get("double_z", True), True),
            ("model.params.ddconfig.resamp_with_conv", network.get("resamp_with_conv", True), True),
            ("model.params.ddconfig.out_ch", network.get("out_ch", 2), audio_channels),
            ("preprocessing.stft.causal", stft.get("causal", True), True),
            ("preprocessing.stft.win_length", stft.get("win_length", n_fft), n_fft),
            ("preprocessing.mel.mel_fmin", mel.get("mel_fmin", 0), 0),
            ("preprocessing.mel.mel_fmax", mel.get("mel_fmax", sampling_rate / 2), sampling_rate / 2),
        ]
        problems = [
            f"audio_vae.{where} = {value!r}: must be {allowed!r}" for where, value, allowed in fixed if value != allowed
        ]
        resolutions = {network.get("resolution", 256) // 2**level for level in range(len(multipliers))}
        attended = resolutions.intersection(network.get("attn_resolutions", ()))
        if attended:
            problems.append(
                f"audio_vae.model.params.ddconfig.attn_resolutions = {network['attn_resolutions']!r}: "
                f"must hold none of {sorted(resolutions)} (no level has attention)"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return cls(
            sampling_rate=sampling_rate,
            hop_length=stft.get("hop_length", 160),
            n_fft=n_fft,
            mel_bins=network.get("mel_bins") or mel.get("n_mel_channels") or 64,
            audio_channels=audio_channels,
            latent_channels=network.get("z_channels", 8),
            base_channels=network.get("ch", 128),
            channel_multipliers=multipliers,
            num_res_blocks=network.get("num_res_blocks", 2),
        )

    @property
    def time_compression(self) -> int:
        """Mel frames per latent frame, after the first one (4 for the published models)."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def latents_per_second(self) -> float:
        """Latent frames per second of sound (25 for the published models)."""
        return self.sampling_rate / self.hop_length / self.time_compression

    @property
    def latent_mel_bins(self) -> int:
        """Mel axis of the latents (16 for the published models); an odd last bin is dropped at each level."""
        return self.mel_bins // self.time_compression

    def mel_frames(self, latent_frames: int) -> int:
        """Mel frames decoded from `latent_frames`: 4T − 3 for the published models."""
        return self.time_compression * (latent_frames - 1) + 1
