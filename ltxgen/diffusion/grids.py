"""Latent grids: how many latents a request's pixels and seconds become, and how they line up as tokens.

B batch, C channels, F H W latent frames and sides, T tokens, M mel bins.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor


@dataclass(frozen=True)
class VideoGrid:
    """A video latent (B, C, F, H, W); `frames`, `height` and `width` count latents, one token each.

    A latent covers `time_factor` frames of `spatial_factor` squared pixels; the first covers one frame only.
    """

    frames: int
    height: int
    width: int
    channels: int = 128
    time_factor: int = 8
    spatial_factor: int = 32

    @classmethod
    def from_pixels(
        cls,
        num_frames: int,
        height: int,
        width: int,
        *,
        channels: int = 128,
        time_factor: int = 8,
        spatial_factor: int = 32,
    ) -> VideoGrid:
        """The grid of `num_frames` pictures of `height` x `width` pixels; ValueError if they don't fit it."""
        if num_frames < 1 or (num_frames - 1) % time_factor:
            raise ValueError(f"{num_frames} frames: must be {time_factor}k + 1")
        if height < 1 or width < 1 or height % spatial_factor or width % spatial_factor:
            raise ValueError(f"{width}x{height} pixels: must be positive multiples of {spatial_factor}")
        return cls(
            frames=(num_frames - 1) // time_factor + 1,
            height=height // spatial_factor,
            width=width // spatial_factor,
            channels=channels,
            time_factor=time_factor,
            spatial_factor=spatial_factor,
        )

    @property
    def num_frames(self) -> int:
        """Frames in pixels."""
        return (self.frames - 1) * self.time_factor + 1

    @property
    def num_tokens(self) -> int:
        return self.frames * self.height * self.width

    @property
    def token_width(self) -> int:
        return self.channels

    def patchify(self, latents: Tensor) -> Tensor:
        """(B, C, F, H, W) -> tokens (B, F·H·W, C), width running fastest."""
        return latents.flatten(2).transpose(1, 2)

    def unpatchify(self, tokens: Tensor) -> Tensor:
        """Tokens (B, F·H·W, C) -> (B, C, F, H, W)."""
        return tokens.transpose(1, 2).unflatten(2, (self.frames, self.height, self.width))


@dataclass(frozen=True)
class AudioGrid:
    """An audio latent (B, C, T, M), one token for each of `frames` latents in time.

    A latent covers `time_factor` spectrogram columns, the first only one; columns are `hop_length` samples apart.
    """

    frames: int
    channels: int = 8
    mel_bins: int = 16
    sample_rate: int = 16000
    hop_length: int = 160
    time_factor: int = 4

    @classmethod
    def from_video(
        cls,
        num_frames: int,
        fps: float | Fraction,
        *,
        channels: int = 8,
        mel_bins: int = 16,
        sample_rate: int = 16000,
        hop_length: int = 160,
        time_factor: int = 4,
    ) -> AudioGrid:
        """The grid that lasts as long as `num_frames` pictures; rounds half to even on floats, as the official code."""
        latents_per_second = sample_rate / hop_length / time_factor
        return cls(
            frames=round(num_frames / float(fps) * latents_per_second),
            channels=channels,
            mel_bins=mel_bins,
            sample_rate=sample_rate,
            hop_length=hop_length,
            time_factor=time_factor,
        )

    @classmethod
    def from_samples(cls, num_samples: int, sample_rate: int) -> AudioGrid:
        """The grid that a waveform of so many samples is encoded to, resampled and with a last latent that is begun."""
        grid = cls(frames=0)
        columns = math.ceil(num_samples * grid.sample_rate / sample_rate) // grid.hop_length + 1
        return dataclasses.replace(grid, frames=math.ceil(columns / grid.time_factor))

    @property
    def num_tokens(self) -> int:
        return self.frames

    @property
    def token_width(self) -> int:
        return self.channels * self.mel_bins

    def patchify(self, latents: Tensor) -> Tensor:
        """(B, C, T, M) -> tokens (B, T, C·M), channel major."""
        return latents.transpose(1, 2).flatten(2)

    def unpatchify(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T, C·M) -> (B, C, T, M)."""
        return tokens.unflatten(2, (self.channels, self.mel_bins)).transpose(1, 2)
