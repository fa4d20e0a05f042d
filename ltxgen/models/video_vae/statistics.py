"""Per-channel mean and spread of the latents: the transformer sees normalised latents, upsamplers don't."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PerChannelStatistics(nn.Module):
    """Normalise latents (B, C, F, H, W), and back. Both values come from the checkpoint."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # The official names hold hyphens, so they can't be written as attributes.
        self.register_buffer("std-of-means", torch.empty(channels))
        self.register_buffer("mean-of-means", torch.empty(channels))

    def normalize(self, latents: Tensor) -> Tensor:
        """(latents − mean) / std, in the dtype of `latents`."""
        return (latents - self._of("mean-of-means", latents)).div_(self._of("std-of-means", latents))

    def denormalize(self, latents: Tensor) -> Tensor:
        """latents · std + mean, in the dtype of `latents`."""
        return (latents * self._of("std-of-means", latents)).add_(self._of("mean-of-means", latents))

    def _of(self, name: str, latents: Tensor) -> Tensor:
        return self.get_buffer(name).to(latents).view(1, -1, 1, 1, 1)
