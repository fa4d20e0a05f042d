"""A clip that a run starts from: its facts without decoding it, then its frames."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import torch
from torch import Tensor

from ltxgen.media.container import open_media
from ltxgen.media.sound import BadMedia, reason_of

_BT709 = 1  # AVCOL_SPC_BT709


@dataclass(frozen=True)
class ClipFacts:
    """What the first video stream of a file is, and whether there is sound beside it. `fps` is the average rate."""

    width: int
    height: int
    num_frames: int
    fps: Fraction
    has_sound: bool

    @property
    def seconds(self) -> float:
        return float(self.num_frames / self.fps)


def clip_facts(path: Path | str) -> ClipFacts:
    """Of a file whose first frame decodes; frames are counted, since headers guess. Raises BadMedia."""
    try:
        with open_media(path) as container:
            if not container.streams.video:
                raise BadMedia("has no picture; give a video file")
            stream = container.streams.video[0]
            first = next(container.decode(stream), None)
            if first is None or stream.average_rate is None:
                raise BadMedia("has no frames; give a video file")
            if first.rotation:
                raise BadMedia(
                    f"is stored turned by {first.rotation} degrees; write it upright first, for example with "
                    "`ffmpeg -i IN OUT.mp4`"
                )
            has_sound = bool(container.streams.audio)
            container.seek(0)
            num_frames = sum(1 for packet in container.demux(stream) if packet.size)
            return ClipFacts(first.width, first.height, num_frames, Fraction(stream.average_rate), has_sound)
    except (OSError, av.FFmpegError) as error:
        raise BadMedia(f"can't be read ({reason_of(error)}); give a video file") from error


def read_frames(path: Path | str, num_frames: int) -> Tensor:
    """The first `num_frames` frames of a clip that has them: (F, H, W, 3) uint8. Raises BadMedia.

    Converted to RGB by swscale with the matrix of the file's own tag, as the official pipelines have it; where a file
    has none, BT.601.
    """
    frames: list[Tensor] = []
    try:
        with open_media(path) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for frame in container.decode(stream):
                matrix = "ITU709" if frame.colorspace == _BT709 else None  # older PyAV overlooks the tag
                frames.append(torch.from_numpy(frame.to_ndarray(format="rgb24", src_colorspace=matrix)))
                if len(frames) == num_frames:
                    return torch.stack(frames)
    except (OSError, av.FFmpegError) as error:
        raise BadMedia(f"can't be read to its end ({reason_of(error)})") from error
    raise BadMedia(f"has {len(frames)} frames that can be decoded, of the {num_frames} that are wanted")
