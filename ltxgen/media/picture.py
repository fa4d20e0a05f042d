"""A picture that a run is conditioned on: read as upright 8-bit RGB, and sent once through a video codec.

H height, W width.
"""

from __future__ import annotations

import functools
import io
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from ltxgen.media.sound import BadMedia

# What Pillow and its decoders raise for files that are no pictures, are cut short or are made to exhaust memory.
READ_ERRORS = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)
# The mode in which a colour profile of each colour space takes pixels.
_PROFILE_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}


# A picture smaller than a latent holds nothing to condition on, and is mostly a mistake.
MIN_SIDE = 32


@dataclass(frozen=True)
class Picture:
    """`pixels` (H, W, 3) uint8 RGB. `see_through`: whether the file has pixels that are not opaque."""

    pixels: Tensor
    see_through: bool

    @property
    def size(self) -> str:
        return f"{self.pixels.shape[1]}x{self.pixels.shape[0]}"


@dataclass(frozen=True)
class PictureFacts:
    """What a plan tells of a picture."""

    width: int
    height: int
    see_through: bool


def picture_facts(path: Path) -> PictureFacts:
    """Of a file that `read_picture` can read and that has MIN_SIDE pixels a side; read once. Raises BadMedia."""
    try:
        changed_ns = path.stat().st_mtime_ns
    except OSError as error:
        raise BadMedia(f"can't be read as a picture ({error.strerror})") from error
    return _facts(path.absolute(), changed_ns)


@functools.lru_cache(maxsize=256)
def _facts(path: Path, changed_ns: int) -> PictureFacts:
    picture = read_picture(path)
    height, width, _ = picture.pixels.shape
    if min(height, width) < MIN_SIDE:
        raise BadMedia(f"is {width}x{height} pixels, must have {MIN_SIDE} a side at least; give a larger picture")
    return PictureFacts(width, height, picture.see_through)


def read_picture(path: Path | str) -> Picture:
    """The first picture of a file that Pillow reads, turned as its EXIF says, its colours in sRGB.

    Grey and palettes become RGB, 16 bits their upper 8. Of see-through pixels the colour is taken and the alpha
    dropped, as the official `decode_image` does (ltx_pipelines/utils/media_io.py). Raises BadMedia.
    """
    try:
        # Pillow warns of large pictures before it refuses larger ones, and of palettes with several alphas.
        with warnings.catch_warnings(action="ignore"), Image.open(path) as file:
            profile = file.info.get("icc_profile")
            image = _eight_bits(ImageOps.exif_transpose(file))
            see_through = image.has_transparency_data and _least_alpha(image) < 255
            rgb = _without_alpha(image)
            rgb = _in_srgb(rgb, profile) if profile else rgb.convert("RGB")
    except BadMedia:
        raise
    except READ_ERRORS as error:
        reason = getattr(error, "strerror", None) or str(error).replace(f" {str(path)!r}", "") or type(error).__name__
        raise BadMedia(f"can't be read as a picture ({reason})") from error
    return Picture(torch.from_numpy(np.array(rgb)), see_through)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits as grey of 8, which Pillow's own conversion would cut off at 255; colour it has done already."""
    if image.mode == "F":
        raise BadMedia("holds floating-point pixels; save it with 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise BadMedia("holds pixels of more than 16 bits; save it with 8 or 16 bits")
    return Image.fromarray((values >> 8).astype(np.uint8))


def _least_alpha(image: Image.Image) -> int:
    lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
    assert isinstance(lowest, int), "of one channel"
    return lowest


def _without_alpha(image: Image.Image) -> Image.Image:
    if image.mode in ("P", "PA"):  # by way of RGBA, since a palette's own transparency is none of its colours
        image = image.convert("RGBA")
    return image.convert({"LA": "L", "La": "L", "RGBA": "RGB", "RGBa": "RGB", "1": "L"}.get(image.mode, image.mode))


def _in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Converted from the colours of `profile`; one of another colour space than the pixels' says nothing of them."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if _PROFILE_MODES.get(source.profile.xcolor_space.strip()) != image.mode:
            return image.convert("RGB")
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError) as error:
        raise BadMedia(f"has a colour profile that can't be used ({error}); save it without one, in sRGB") from error
    assert converted is not None, "only a conversion in place gives none"
    return converted


def through_h264(pixels: Tensor, crf: int) -> Tensor:
    """(H, W, 3) uint8 encoded as one H.264 frame and decoded again, at even sizes: pictures then look like the frames
    that the model was trained on. `crf` 0 leaves the picture as it is.

    The official `preprocess` (ltx_pipelines/utils/media_io.py), call for call: how PyAV converts colours is part of it.
    """
    if crf == 0:
        return pixels
    H, W = (side // 2 * 2 for side in pixels.shape[:2])
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels[:H, :W].numpy()), format="rgb24")
    with io.BytesIO() as file:
        with av.open(file, "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=1, options={"crf": str(crf), "preset": "veryfast"})
            stream.width, stream.height = W, H
            container.mux(stream.encode(frame.reformat(format="yuv420p")))
            container.mux(stream.encode())
        file.seek(0)
        with av.open(file, "r") as container:
            return torch.from_numpy(next(container.decode(video=0)).to_ndarray(format="rgb24"))
