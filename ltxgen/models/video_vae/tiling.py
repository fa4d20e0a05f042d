"""Where the tiles of a video lie: pure geometry, no tensors.

Lengths and positions are in latents unless a name says pixels or frames. A latent stands for 32 pixels along height
and width, and for 8 frames along time, but the first, which stands for one frame.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

PIXELS_PER_LATENT = 32
FRAMES_PER_LATENT = 8
# The least tiles of the official code.
_MIN_TILE_PX = 64
_MIN_TILE_FRAMES = 16
# One latent at each inner edge of an encoded tile is thrown away, so neighbours share at least two.
_MIN_ENCODE_OVERLAP = 2


@dataclass(frozen=True)
class Tiling:
    """How large tiles are and how much neighbours share. A tile of None leaves its axis whole.

    `spatial_tile_px` is the tile along the longer side; in decoding it shrinks along the shorter one with the aspect
    ratio of the video.

    Raises ValueError listing every field that is out of range.
    """

    spatial_tile_px: int | None = None
    spatial_overlap_px: int = 0
    temporal_tile_frames: int | None = None
    temporal_overlap_frames: int = 0

    def __post_init__(self) -> None:
        problems = [
            *_problems("spatial_{}_px", self.spatial_tile_px, self.spatial_overlap_px, PIXELS_PER_LATENT, _MIN_TILE_PX),
            *_problems(
                "temporal_{}_frames",
                self.temporal_tile_frames,
                self.temporal_overlap_frames,
                FRAMES_PER_LATENT,
                _MIN_TILE_FRAMES,
            ),
        ]
        if problems:
            raise ValueError("\n".join(problems))

    def check_for_encoding(self) -> None:
        """Raise ValueError where neighbours share too little for the encoder: 64 px, 16 frames."""
        rows = (
            ("spatial_overlap_px", self.spatial_tile_px, self.spatial_overlap_px, PIXELS_PER_LATENT),
            ("temporal_overlap_frames", self.temporal_tile_frames, self.temporal_overlap_frames, FRAMES_PER_LATENT),
        )
        problems = [
            f"{name} = {overlap}: must be at least {_MIN_ENCODE_OVERLAP * unit} for encoding"
            for name, tile, overlap, unit in rows
            if tile is not None and overlap < _MIN_ENCODE_OVERLAP * unit
        ]
        if problems:
            raise ValueError("\n".join(problems))


@dataclass(frozen=True)
class Span:
    """One tile's extent on one axis, and how many of its latents the neighbours before and after it hold too."""

    start: int
    stop: int
    shared_before: int = 0
    shared_after: int = 0

    @property
    def latents(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def pixels(self) -> slice:
        """The span in pixels of height or width."""
        return slice(PIXELS_PER_LATENT * self.start, PIXELS_PER_LATENT * self.stop)

    @property
    def frames(self) -> slice:
        """The span in frames of time: a tile's first latent stands for one frame, wherever the tile lies."""
        return slice(FRAMES_PER_LATENT * self.start, FRAMES_PER_LATENT * (self.stop - 1) + 1)


Spans = tuple[Span, ...]


@dataclass(frozen=True)
class Tile:
    """A box of latents (B, C, F, H, W), and the box of video that it stands for."""

    time: Span
    height: Span
    width: Span

    @property
    def latents(self) -> tuple[slice, ...]:
        return (slice(None), slice(None), self.time.latents, self.height.latents, self.width.latents)

    @property
    def video(self) -> tuple[slice, ...]:
        return (slice(None), slice(None), self.time.frames, self.height.pixels, self.width.pixels)

    @property
    def video_size(self) -> tuple[int, int, int]:
        """Frames, height and width of the box of video."""
        frames, height, width = (part.stop - part.start for part in self.video[2:])
        return frames, height, width


def list_tiles(size: Sequence[int], tiling: Tiling | None, *, follow_aspect: bool = True) -> tuple[Tile, ...]:
    """The tiles of latents of `size` (F, H, W): by time first, then by height, then by width.

    Each tile is one run of the model. See `split_axes` for `follow_aspect`.
    """
    return tuple(Tile(*spans) for spans in itertools.product(*split_axes(size, tiling, follow_aspect=follow_aspect)))


def split_axes(size: Sequence[int], tiling: Tiling | None, *, follow_aspect: bool = True) -> tuple[Spans, Spans, Spans]:
    """The spans along time, height and width; every combination of them is a tile.

    `follow_aspect` is for decoding: tiles get the aspect ratio of the video. Encoded tiles are square.
    """
    tiling = tiling or Tiling()
    frames, height, width = size
    time: Spans = (Span(0, frames),)
    rows: Spans = (Span(0, height),)
    columns: Spans = (Span(0, width),)
    if tiling.temporal_tile_frames is not None:
        tile = tiling.temporal_tile_frames // FRAMES_PER_LATENT
        time = _split_time(frames, tile, tiling.temporal_overlap_frames // FRAMES_PER_LATENT)
    if tiling.spatial_tile_px is not None:
        tile, overlap = tiling.spatial_tile_px // PIXELS_PER_LATENT, tiling.spatial_overlap_px // PIXELS_PER_LATENT
        longer = max(height, width)
        row_tile, column_tile = (
            max(overlap + 1, 2, round(tile * side / longer)) if follow_aspect else tile for side in (height, width)
        )
        rows, columns = _split(height, row_tile, overlap), _split(width, column_tile, overlap)
    return time, rows, columns


def _split(length: int, tile: int, overlap: int) -> Spans:
    """Tiles of one size, neighbours sharing `overlap`; the last one ends where the axis ends and may be shorter."""
    if length <= tile:
        return (Span(0, length),)
    step = tile - overlap
    count = -(-(length - overlap) // step)
    return tuple(
        Span(
            start=i * step,
            stop=length if i == count - 1 else i * step + tile,
            shared_before=overlap if i else 0,
            shared_after=overlap if i < count - 1 else 0,
        )
        for i in range(count)
    )


def _split_time(length: int, tile: int, overlap: int) -> Spans:
    """As `_split`, but tiles after the first start one latent earlier.

    The models take the first latent of any tile for a single frame; the latent before pays for that.
    """
    first, *later = _split(length, tile, overlap)
    return (first, *(Span(s.start - 1, s.stop, s.shared_before + 1, s.shared_after) for s in later))


def _problems(field: str, tile: int | None, overlap: int, unit: int, least: int) -> list[str]:
    tile_field, overlap_field = field.format("tile"), field.format("overlap")
    problems = []
    if tile is not None and (tile < least or tile % unit):
        problems.append(f"{tile_field} = {tile}: must be a multiple of {unit}, at least {least}")
    if overlap < 0 or overlap % unit:
        problems.append(f"{overlap_field} = {overlap}: must be a multiple of {unit}, at least 0")
    elif tile is None and overlap:
        problems.append(f"{overlap_field} = {overlap}: must be 0 where {tile_field} is not set")
    elif tile is not None and overlap >= tile:
        problems.append(f"{overlap_field} = {overlap}: must be less than {tile_field} ({tile})")
    return problems
