"""The random draws of a run, from one continuing generator.

A run draws, each as whole tokens (1, T, C) including appended ones: first stage video, first stage audio, second stage
video, second stage audio. Drawing in another layout or order, or seeding the second stage anew, gives another video.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class NoiseState:
    """A `NoiseSource` between two draws; `generator` is uint8 on the CPU, fit for a file."""

    draw_on: Literal["cpu", "device"]
    generator: Tensor


class NoiseSource:
    """Standard normal noise in `dtype` on `device`.

    `draw_on="cpu"` draws on the CPU, in fp32 or `dtype` if that is wider, rounds and moves: a seed means the same video
    on any device. `"device"` draws in `dtype` on `device`, as the official pipelines do: a seed means the same video as
    theirs on the same device.
    """

    def __init__(
        self,
        seed: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        draw_on: Literal["cpu", "device"] = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.dtype = dtype
        self.draw_on = draw_on
        self._generator = torch.Generator("cpu" if draw_on == "cpu" else self.device).manual_seed(seed)

    @classmethod
    def from_state(
        cls, state: NoiseState, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> NoiseSource:
        """The source that goes on where `state` was taken."""
        source = cls(0, device=device, dtype=dtype, draw_on=state.draw_on)
        source.restore(state)
        return source

    def seeded(self, seed: int, dtype: torch.dtype) -> NoiseSource:
        """A source of its own that draws where this one does. The seed may be negative."""
        return NoiseSource(seed, device=self.device, dtype=dtype, draw_on=self.draw_on)

    def state(self) -> NoiseState:
        return NoiseState(self.draw_on, self._generator.get_state())

    def restore(self, state: NoiseState) -> None:
        """Go on where `state` was taken."""
        assert state.draw_on == self.draw_on, "a state fits sources that draw on the same device"
        self._generator.set_state(state.generator)

    def draw(self, shape: Sequence[int]) -> Tensor:
        """The next draw."""
        if self.draw_on == "cpu":
            drawn = torch.promote_types(self.dtype, torch.float32)
            noise = torch.randn(tuple(shape), generator=self._generator, dtype=drawn)
            return noise.to(self.dtype).to(self.device)
        return torch.randn(tuple(shape), generator=self._generator, dtype=self.dtype, device=self.device)
