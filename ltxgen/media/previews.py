"""Cheap pictures of a video that is still latents: each latent as one colour, by a linear map.

No such map is published for LTX-2.3, so it is learned here, by least squares between latents and the mean colours of
the frames that the video's own decoder makes of them. The first videos that are decoded give it, at next to no cost;
until then colours are false: the three directions in which the latents of the picture itself vary most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ltxgen.diffusion.grids import VideoGrid
from ltxgen.media.files import whole_file

PREVIEWS = "previews"

_ENOUGH = 16384  # latents after which the map of 128 channels hardly moves: two or three videos
_RIDGE = 10.0  # as if that many latents had said that a channel has no colour; for videos with few latents
_PIXELS_APART = 4  # of those that make up a mean colour: 64 of a latent's 1024
_ZOOM = 8
_SPREAD = 2.5  # standard deviations from grey to full colour, in false colours


class LatentColors:
    """What is known of how normalised latents (C channels) look: sums over all latents seen, enough to solve for the
    map at any time and to add to it in a later run."""

    def __init__(self, channels: int) -> None:
        self.products = torch.zeros(channels + 1, channels + 1, dtype=torch.float64)
        self.targets = torch.zeros(channels + 1, 3, dtype=torch.float64)

    @property
    def num_latents(self) -> int:
        return int(self.products[-1, -1])

    @property
    def is_known(self) -> bool:
        """Whether there were more latents than unknowns."""
        return self.num_latents >= len(self.products)

    def add(self, latents: Tensor, colors: Tensor) -> None:
        """Learn from latents (C, F, H, W) and the mean colours (F, H, W, 3) in [0, 1] of the frames decoded from
        them."""
        rows = _with_bias(latents)
        self.products += rows.T @ rows
        self.targets += rows.T @ colors.reshape(-1, 3).to(torch.float64)

    def colors_of(self, latents: Tensor) -> Tensor:
        """Colours (F, H, W, 3) in [0, 1] of latents (C, F, H, W)."""
        ridge = torch.full((len(self.products),), _RIDGE, dtype=torch.float64)
        ridge[-1] = 0  # the mean colour is not held back
        weights = torch.linalg.solve(self.products + torch.diag(ridge), self.targets)
        return (_with_bias(latents) @ weights).view(*latents.shape[1:], 3).clamp_(0, 1)

    @classmethod
    def load(cls, path: Path, channels: int) -> LatentColors:
        """What `path` holds; nothing known yet where there is no such file, or none that fits."""
        known = cls(channels)
        try:
            stored = load_file(path)
            if stored["products"].shape == known.products.shape and stored["targets"].shape == known.targets.shape:
                known.products, known.targets = stored["products"], stored["targets"]
        except (OSError, SafetensorError, KeyError):
            pass  # a map that can't be read is learned again
        return known

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            partial.write_bytes(save({"products": self.products, "targets": self.targets}))


class Previews:
    """Writes a preview of a denoise stage into `folder` after every `every` steps (0: never), and learns the map from
    what the run decodes, kept in the file that `known` names.

    `known` is asked late, since the file's name holds a checkpoint's hash; None: nothing is kept. `note` is told once
    what the colours are.
    """

    def __init__(
        self, folder: Path, every: int, fps: Fraction, known: Callable[[], Path | None], note: Callable[[str], None]
    ) -> None:
        self._folder = folder
        self._every = every
        self._fps = fps
        self._known = known
        self._note = note
        self._colors: LatentColors | None = None

    def show(self, stage: str, step: int, latents: Tensor) -> None:
        """Write `<stage>_<step + 1>.png`, animated, if it is due: latents (1, C, F, H, W), normalised, the clean ones
        that step `step` (from 0) predicts."""
        if not self._every or (step + 1) % self._every:
            return
        one = latents[0]
        if self._colors is None:
            self._colors = self._load(len(one))
            kind = "" if self._colors.is_known else ", in false colours until a video of this checkpoint was decoded"
            self._note(f"previews every {self._every} steps{kind}: {self._folder}")
        colors = self._colors.colors_of(one) if self._colors.is_known else false_colors(one)
        self._folder.mkdir(exist_ok=True)
        save_preview(colors, self._folder / f"{stage}_{step + 1:03d}.png", self._fps)

    def learn(self, latents: Tensor, frames: Iterator[Tensor]) -> Iterator[Tensor]:
        """Pass on `frames`, chunks (f, H, W, 3) uint8 decoded from latents (1, C, F, H, W), and learn from them."""
        path = self._known()
        colors = LatentColors(latents.shape[1]) if path is None else LatentColors.load(path, latents.shape[1])
        if path is None or colors.num_latents >= _ENOUGH:
            yield from frames
            return
        means: list[Tensor] = []

        def seen(chunk: Tensor) -> Tensor:
            means.append(mean_colors(chunk))
            return chunk

        yield from map(seen, frames)  # not a loop, which would keep each chunk alive while the next one is made
        if not means:
            return  # a rank to which no frames come
        colors.add(latents[0], means_of_latents(torch.cat(means)))
        try:
            colors.save(path)
        except OSError as error:
            self._note(f"colours of previews could not be kept: {error}")

    def _load(self, channels: int) -> LatentColors:
        path = self._known()
        return LatentColors(channels) if path is None else LatentColors.load(path, channels)


def mean_colors(frames: Tensor) -> Tensor:
    """Frames (f, H, W, 3) uint8 as the mean colours (f, H / 32, W / 32, 3) in [0, 1] of what one latent covers."""
    apart, side = _PIXELS_APART, VideoGrid.spatial_factor // _PIXELS_APART
    some = frames[:, apart // 2 :: apart, apart // 2 :: apart].float()
    return some.unflatten(2, (-1, side)).unflatten(1, (-1, side)).mean(dim=(2, 4)).div_(255).cpu()


def means_of_latents(colors: Tensor) -> Tensor:
    """Of colours by frame (8 k + 1, ...), those by latent frame (k + 1, ...): the first latent is one frame."""
    rest = colors[1:].unflatten(0, (-1, VideoGrid.time_factor)).mean(dim=1)
    return torch.cat([colors[:1], rest])


def false_colors(latents: Tensor) -> Tensor:
    """Latents (C, F, H, W) as colours (F, H, W, 3) in [0, 1]: their three principal components around grey, the widest
    one as green, to which eyes are most sensitive."""
    rows = latents.flatten(1).T.to("cpu", torch.float64)
    rows = rows - rows.mean(dim=0)
    _, directions = torch.linalg.eigh(rows.T @ rows)
    best = directions[:, -3:].flip(-1)
    largest = best.gather(0, best.abs().argmax(dim=0, keepdim=True))
    parts = rows @ (best * largest.sign())  # a direction has no sign of its own
    parts = parts / (parts.std(dim=0, correction=0) * 2 * _SPREAD).clamp_min(1e-12) + 0.5
    return parts[:, [1, 0, 2]].clamp_(0, 1).view(*latents.shape[1:], 3)


def save_preview(colors: Tensor, path: Path, fps: Fraction) -> None:
    """Colours (F, H, W, 3) in [0, 1], one of a latent frame, as an animated PNG at the video's pace."""
    pixels = (colors * 255).round().to(torch.uint8).numpy()
    images = [Image.fromarray(frame) for frame in pixels]
    size = (images[0].width * _ZOOM, images[0].height * _ZOOM)
    first, *rest = (image.resize(size, Image.Resampling.BICUBIC) for image in images)
    milliseconds = float(1000 * VideoGrid.time_factor / fps)
    with whole_file(path) as partial:
        first.save(partial, format="PNG", save_all=True, append_images=rest, duration=milliseconds, loop=0)


def _with_bias(latents: Tensor) -> Tensor:
    """(C, F, H, W) -> (F·H·W, C + 1) float64 on the CPU, ones last."""
    rows = latents.flatten(1).T.to("cpu", torch.float64)
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
