"""How much memory decoding and encoding take, and the tiling that fits into what is free."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ltxgen.models.video_vae.config import Resample, VideoVAEConfig
from ltxgen.models.video_vae.tiling import FRAMES_PER_LATENT, PIXELS_PER_LATENT, Spans, Tiling, split_axes

# The overlaps of the current official code; its tile sizes are 768 px and 80 frames.
OVERLAP_PX = 64
OVERLAP_FRAMES = 24
LARGE_BYTES = 2**31


class Cost(Protocol):
    """What a run in tiles takes; `what` is the work in words, `axes` where its tiles lie."""

    @property
    def what(self) -> str: ...

    def axes(self, size: Sequence[int], tiling: Tiling | None) -> tuple[Spans, Spans, Spans]: ...
    def peak_bytes(self, size: Sequence[int], tiling: Tiling | None) -> int: ...


@dataclass(frozen=True)
class DecodeCost:
    """Memory model of one way to decode.

    A run holds `copies` of the widest activation at once: in a residual block its input, what the convolution reads and
    what it writes, and what the convolution needs beside them. `itemsize` is that of the decoder's dtype.
    """

    config: VideoVAEConfig
    copies: float
    itemsize: int = 2
    what = "decoding"

    def axes(self, size: Sequence[int], tiling: Tiling | None) -> tuple[Spans, Spans, Spans]:
        return split_axes(size, tiling)

    def activation_bytes(self, size: Sequence[int]) -> int:
        """What one run on latents of `size` (F', H', W') holds at most, weights apart."""
        return math.ceil(self.copies * self.itemsize * self._widest(size))

    def peak_bytes(self, size: Sequence[int], tiling: Tiling | None) -> int:
        """The same for a whole decode in tiles, with the frames that are blended and turned to pixels."""
        time, rows, columns = self.axes(size, tiling)
        tile = [max(span.stop - span.start for span in axis) for axis in (time, rows, columns)]
        frames = FRAMES_PER_LATENT * (tile[0] - 1) + 1
        frame = 3 * size[1] * size[2] * PIXELS_PER_LATENT**2
        chunk = frames * frame
        blended = 0
        if len(time) * len(rows) * len(columns) > 1:
            # Joined tiles beside those before, which the reader still has, and the frames in which the two blend.
            shared = max((a.frames.stop - b.frames.start for a, b in itertools.pairwise(time)), default=0)
            blended = self.itemsize * ((2 if len(time) > 1 else 1) * chunk + shared * frame)
        return blended + max(self.activation_bytes(tile), chunk * (self.itemsize + 1))

    def _widest(self, size: Sequence[int]) -> int:
        """Values of the largest activation."""
        frames, height, width = size
        strides = [block for block in self.config.decoder_blocks if isinstance(block, Resample)]
        channels = self.config.decoder_base_channels * math.prod(block.multiplier for block in strides)
        widest = channels * math.prod(size)
        for block in strides:
            a, b, c = block.stride
            frames, height, width = frames * a - (a - 1), height * b, width * c
            channels //= block.multiplier
            widest = max(widest, channels * frames * height * width)
        return widest


@dataclass(frozen=True)
class EncodeCost:
    """Memory model of one way to encode; see `DecodeCost`. The widest activation is that of the first layers.

    `more_copies` is what one of more than 2 GiB takes beside `copies`.
    """

    config: VideoVAEConfig
    copies: float
    more_copies: float = 0.0
    itemsize: int = 2
    what = "encoding"

    def axes(self, size: Sequence[int], tiling: Tiling | None) -> tuple[Spans, Spans, Spans]:
        return split_axes(size, tiling, follow_aspect=False)

    def peak_bytes(self, size: Sequence[int], tiling: Tiling | None) -> int:
        """What encoding to latents of `size` (F', H', W') takes beside weights and a video on the CPU."""
        frames, height, width = (max(span.stop - span.start for span in axis) for axis in self.axes(size, tiling))
        pixels = (FRAMES_PER_LATENT * (frames - 1) + 1) * height * width * PIXELS_PER_LATENT**2
        patches = pixels // self.config.patch_size**2
        widest = self.itemsize * self.config.encoder_base_channels * patches
        copies = self.copies + (self.more_copies if widest > LARGE_BYTES else 0.0)
        return math.ceil(copies * widest + self.itemsize * self.config.image_channels * pixels)


def fit_tiling(cost: Cost, size: Sequence[int], free_bytes: int) -> Tiling | None:
    """The fastest tiling of latents of `size` (F', H', W') that fits into `free_bytes`; None is one piece.

    The fastest computes the fewest latents twice, in the fewest tiles. Neighbours share as much as in the official
    code's decoding.

    Raises ValueError where not even the smallest tiles fit.
    """
    if cost.peak_bytes(size, None) <= free_bytes:
        return None
    tilings = _tilings(size)
    fitting = [tiling for tiling in tilings if cost.peak_bytes(size, tiling) <= free_bytes]
    if not fitting:
        least = least_bytes(cost, size)
        raise ValueError(
            f"{cost.what} needs at least {least / 2**30:.2f} GiB in the smallest tiles and "
            f"{free_bytes / 2**30:.2f} GiB are free; free some memory, or ask for a smaller or shorter video"
        )
    return min(fitting, key=lambda tiling: _work(cost.axes(size, tiling)))


def least_bytes(cost: Cost, size: Sequence[int]) -> int:
    """What latents of `size` (F', H', W') take in the smallest tiles."""
    return min(cost.peak_bytes(size, tiling) for tiling in _tilings(size))


def _tilings(size: Sequence[int]) -> list[Tiling]:
    longer = max(size[1:]) * PIXELS_PER_LATENT
    frames = size[0] * FRAMES_PER_LATENT
    spatial = [None, *range(OVERLAP_PX + PIXELS_PER_LATENT, longer, PIXELS_PER_LATENT)]
    temporal = [None, *range(OVERLAP_FRAMES + FRAMES_PER_LATENT, frames, FRAMES_PER_LATENT)]
    return [
        Tiling(pixels, OVERLAP_PX if pixels else 0, length, OVERLAP_FRAMES if length else 0)
        for pixels, length in itertools.product(spatial, temporal)
    ]


def _work(axes: Sequence[Spans]) -> tuple[int, int]:
    """Latents in all tiles, then tiles."""
    latents = math.prod(sum(span.stop - span.start for span in axis) for axis in axes)
    return latents, math.prod(map(len, axes))
