"""Decoding and encoding in tiles, so that memory depends on the tile and not on the video.

Shapes: B batch, f frames of a chunk, F frames, H height, W width in pixels; F', H', W' in latents.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from ltxgen.models.video_vae.config import VideoVAEConfig
from ltxgen.models.video_vae.tiling import (
    FRAMES_PER_LATENT,
    PIXELS_PER_LATENT,
    Span,
    Tile,
    Tiling,
    list_tiles,
    split_axes,
)

OnTile = Callable[[int, int], None]
"""Called after each tile with the number done and the number of all."""

PlacedWeights = tuple[slice, Tensor]
"""Where a tile lies on one axis of the video, and its weights there."""


class Decoder(Protocol):
    """A `VideoDecoder`, or what stands in for one."""

    config: VideoVAEConfig

    def __call__(self, latents: Tensor) -> Tensor: ...


class Encoder(Protocol):
    """A `VideoEncoder`, or what stands in for one."""

    config: VideoVAEConfig

    def __call__(self, video: Tensor) -> Tensor: ...
    def parameters(self) -> Iterator[Parameter]: ...


def decode_tiled(
    decoder: Decoder, latents: Tensor, tiling: Tiling | None, *, on_tile: OnTile | None = None
) -> Iterator[Tensor]:
    """Decode normalised latents (B, 128, F', H', W') to video (B, 3, f, H, W), chunk by chunk along time.

    Chunks come in order and hold finished frames; beside the running group of tiles, only frames that the next group
    blends into are kept. Blending follows the official `VideoDecoder.tiled_decode`. Without tiling there is one chunk.
    """
    size = latents.shape[2:]
    decoded = map(tile_decoder(decoder, latents), list_tiles(size, tiling))
    return blend_tiles(decoded, size, tiling, on_tile=on_tile)


def tile_decoder(decoder: Decoder, latents: Tensor) -> Callable[[Tile], Tensor]:
    """Decodes a tile of normalised latents (B, 128, F', H', W') to (B, 3, *tile.video_size)."""
    _check_compression(decoder.config)
    return lambda tile: decoder(latents[tile.latents])


def blend_tiles(
    decoded: Iterable[Tensor], size: Sequence[int], tiling: Tiling | None, *, on_tile: OnTile | None = None
) -> Iterator[Tensor]:
    """Join the decoded tiles of latents of `size` (F', H', W') into chunks, as `decode_tiled` does.

    `decoded` holds them in the order of `list_tiles`; they are taken one by one, and overwritten where they blend.
    Sums run in the dtype of the tiles.
    """
    time_spans, row_spans, column_spans = split_axes(size, tiling)
    time = _normalised([(span.frames, _time_weights(span)) for span in time_spans])
    rows = _normalised([(span.pixels, _space_weights(span)) for span in row_spans])
    columns = _normalised([(span.pixels, _space_weights(span)) for span in column_spans])
    starts = [place.start for place, _ in time[1:]] + [time[-1][0].stop]  # of the next tiles, then the end

    tiles = _counted(decoded, len(time) * len(rows) * len(columns), on_tile)
    carry: Tensor | None = None
    for (place, weights), next_start in zip(time, starts, strict=True):
        group = _join(tiles, weights, rows, columns)
        if carry is not None:
            group[:, :, : carry.shape[2]] += carry
        finished = next_start - place.start
        # A copy, so that the group's memory goes with its chunk.
        carry = group[:, :, finished:].clone()
        # Neighbours that overlap by all but one latent start at the same frame.
        if finished:
            yield group[:, :, :finished]
        del group


def encode_tiled(encoder: Encoder, video: Tensor, tiling: Tiling | None, *, on_tile: OnTile | None = None) -> Tensor:
    """Encode video (B, 3, F, H, W) in [−1, 1] to normalised latents (B, 128, F', H', W'), tile by tile.

    `video` may stay on the CPU: tiles move to the encoder's device and dtype, where the latents are built. Nothing is
    blended: each latent comes from one tile. Neighbours in space share at least 64 px and meet in the middle of
    that, so that at least one latent, which saw zeros for pixels, is thrown away at each inner edge. In time they
    share at least 16 frames, all of which the earlier tile keeps: the encoder is causal, only beginnings go wrong.
    Without tiling there is one tile.

    Raises ValueError where the video's size doesn't come out even or the overlaps are less.
    """
    _check_compression(encoder.config)
    if tiling is not None:
        tiling.check_for_encoding()
    size = encoder.config.latent_size(*video.shape[2:])
    parameter = next(encoder.parameters())
    latents = torch.empty(
        (video.shape[0], encoder.config.latent_channels, *size), dtype=parameter.dtype, device=parameter.device
    )
    tiles = list_tiles(size, tiling, follow_aspect=False)
    encoded = (encoder(video[tile.video].to(parameter)) for tile in tiles)
    for tile, tile_latents in zip(tiles, _counted(encoded, len(tiles), on_tile), strict=True):
        kept = (_kept_in_time(tile.time), _kept_in_space(tile.height), _kept_in_space(tile.width))
        inside = tuple(
            slice(keep.start - span.start, keep.stop - span.start)
            for keep, span in zip(kept, (tile.time, tile.height, tile.width), strict=True)
        )
        latents[:, :, *kept] = tile_latents[:, :, *inside]
    return latents


def _check_compression(config: VideoVAEConfig) -> None:
    compression = (config.time_compression, config.space_compression)
    if compression != (FRAMES_PER_LATENT, PIXELS_PER_LATENT):
        raise ValueError(
            f"vae compresses time by {compression[0]} and space by {compression[1]}: "
            f"tiles are laid out for {FRAMES_PER_LATENT} and {PIXELS_PER_LATENT}"
        )


def _counted(tiles: Iterable[Tensor], total: int, on_tile: OnTile | None) -> Iterator[Tensor]:
    done = itertools.count(1)

    def report(tile: Tensor) -> Tensor:
        if on_tile is not None:
            on_tile(next(done), total)
        return tile

    # A generator's loop variable would keep each tile alive while the next one is computed; map doesn't.
    return map(report, tiles)


def _join(
    tiles: Iterator[Tensor], time_weights: Tensor, rows: Sequence[PlacedWeights], columns: Sequence[PlacedWeights]
) -> Tensor:
    """The weighted sum (B, 3, f, H, W) of the tiles of one span of time, which are the next ones of `tiles`."""
    group: Tensor | None = None
    for (row, row_weights), (column, column_weights) in itertools.product(rows, columns):
        tile = next(tiles)
        _weigh_(tile, time_weights, row_weights, column_weights)
        if len(rows) == len(columns) == 1:
            return tile
        if group is None:
            group = tile.new_zeros((*tile.shape[:3], rows[-1][0].stop, columns[-1][0].stop))
        group[..., row, column] += tile
        del tile
    assert group is not None
    return group


def _weigh_(tile: Tensor, time: Tensor, rows: Tensor, columns: Tensor) -> None:
    """Multiply (B, 3, f, h, w) in place by the weights along each axis; axes without ramps cost nothing.

    The weights stay fp32 beside a bf16 tile: each product is rounded once.
    """
    for weights, shape in ((time, (-1, 1, 1)), (rows, (-1, 1)), (columns, (-1,))):
        if (weights != 1).any():
            tile.mul_(weights.view(shape).to(tile.device))


def _time_weights(span: Span) -> Tensor:
    """A rise from 0 over the frames shared with the tile before, a fall to just above 0 over those shared after."""
    weights = torch.ones(span.frames.stop - span.frames.start, dtype=torch.float64)
    if span.shared_before:
        rise = 1 + FRAMES_PER_LATENT * (span.shared_before - 1)
        weights[:rise] *= torch.arange(rise, dtype=torch.float64) / rise
    if span.shared_after:
        fall = FRAMES_PER_LATENT * span.shared_after
        weights[-fall:] *= torch.arange(fall, 0, -1, dtype=torch.float64) / (fall + 1)
    return weights


def _space_weights(span: Span) -> Tensor:
    """Ramps between 0 and 1, both left out, over the pixels shared with each neighbour."""
    weights = torch.ones(PIXELS_PER_LATENT * (span.stop - span.start), dtype=torch.float64)
    if span.shared_before:
        rise = PIXELS_PER_LATENT * span.shared_before
        weights[:rise] *= torch.arange(1, rise + 1, dtype=torch.float64) / (rise + 1)
    if span.shared_after:
        fall = PIXELS_PER_LATENT * span.shared_after
        weights[-fall:] *= torch.arange(fall, 0, -1, dtype=torch.float64) / (fall + 1)
    return weights


def _normalised(weights: Sequence[PlacedWeights]) -> list[PlacedWeights]:
    """Divide one axis's weights by their sum over its tiles.

    Tiles are every combination of the spans of three axes, so the sum of products of weights is the product of these
    sums, and no sum of the video's size is needed. Ramps of two neighbours add to 1; the sum differs from 1 only
    where tiles overlap by more than half.
    """
    total = torch.zeros(weights[-1][0].stop, dtype=torch.float64)
    for place, weight in weights:
        total[place] += weight
    total.clamp_(min=1e-8)
    return [(place, (weight / total[place]).float()) for place, weight in weights]


def _kept_in_time(span: Span) -> slice:
    return slice(span.start + span.shared_before, span.stop)


def _kept_in_space(span: Span) -> slice:
    return slice(span.start + span.shared_before - span.shared_before // 2, span.stop - span.shared_after // 2)
