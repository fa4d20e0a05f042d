"""Video, sound and pictures as files: write, read back, compare."""

from ltxgen.media.background import Background
from ltxgen.media.compare import (
    AudioDifference,
    FrameDifference,
    RunComparison,
    compare_audio,
    compare_frames,
    compare_runs,
    compare_tensors,
)
from ltxgen.media.files import check_free_space, check_writable, whole_file
from ltxgen.media.images import ContactSheet, contact_sheet, save_png
from ltxgen.media.mp4 import AAC_SAMPLE_RATES, Mp4Settings, Mp4Writer, check_encoders, estimated_bytes
from ltxgen.media.pixels import rgb_to_yuv420, to_uint8
from ltxgen.media.read import Clip, read_video

__all__ = [
    "AAC_SAMPLE_RATES",
    "AudioDifference",
    "Background",
    "Clip",
    "ContactSheet",
    "FrameDifference",
    "Mp4Settings",
    "Mp4Writer",
    "RunComparison",
    "check_encoders",
    "check_free_space",
    "check_writable",
    "compare_audio",
    "compare_frames",
    "compare_runs",
    "compare_tensors",
    "contact_sheet",
    "estimated_bytes",
    "read_video",
    "rgb_to_yuv420",
    "save_png",
    "to_uint8",
    "whole_file",
]
