"""Opens a sound or video file to be read, and no other file with it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import av
from av.container import InputContainer

# Containers of sound, video and single pictures, by FFmpeg's names. What is left out names other files or addresses in
# its text (hls, dash, concat, sdp, image2, ...): FFmpeg tells a file's kind by its content, whatever it is called.
FORMATS = (
    *("mov", "matroska", "avi", "mpegts", "mpeg", "mpegvideo", "flv", "asf", "mxf", "nut", "ivf", "dv", "h264", "hevc"),
    *("obu", "av1", "m4v", "mjpeg", "yuv4mpegpipe", "gif", "apng", "png_pipe", "jpeg_pipe", "webp_pipe", "bmp_pipe"),
    *("wav", "w64", "rf64", "aiff", "flac", "mp3", "aac", "ac3", "eac3", "dts", "ogg", "caf", "amr", "au", "wv", "tta"),
)
_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": ",".join(FORMATS)}


def open_media(path: Path | str) -> InputContainer:
    """`path` as a container. Raises OSError or av.FFmpegError for a file that can't be read."""
    # An absolute name is a file's: `concat:a|b` and `http://...` are FFmpeg's own words for other sources.
    try:
        return av.open(os.path.abspath(path), options=dict(_OPTIONS))
    except av.error.ArgumentError as error:
        raise OSError(errno.EINVAL, "it is of no kind that is read here, such as mp4, mkv, wav or mp3") from error
