"""Frames of a file that may be a video or a picture, which is a video of one frame.

F frames, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from ltxgen.media.clip import clip_facts, read_frames
from ltxgen.media.picture import READ_ERRORS, picture_facts, read_picture


@dataclass(frozen=True)
class FootageFacts:
    """What a plan tells of a file."""

    width: int
    height: int
    num_frames: int


def footage_facts(path: Path) -> FootageFacts:
    """Of a file that `read_footage` can read. Raises BadMedia."""
    if _is_picture(path):
        picture = picture_facts(path)
        return FootageFacts(picture.width, picture.height, 1)
    clip = clip_facts(path)
    return FootageFacts(clip.width, clip.height, clip.num_frames)


def read_footage(path: Path, num_frames: int) -> Tensor:
    """The first `num_frames` frames, which there are: (F, H, W, 3) uint8. Raises BadMedia."""
    return read_picture(path).pixels[None] if _is_picture(path) else read_frames(path, num_frames)


def _is_picture(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return not getattr(image, "is_animated", False)
    except READ_ERRORS:
        return False  # what it is then is said by who reads videos
