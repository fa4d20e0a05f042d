"""The machine under a run: device and versions, memory, progress."""

from ltxgen.runtime.displays import LiveDisplay, PlainDisplay, QuietDisplay, create_progress
from ltxgen.runtime.environment import DTYPES, resolve_device, resolve_dtype, set_threads, versions
from ltxgen.runtime.memory import MemoryMeter, format_bytes, free_memory
from ltxgen.runtime.progress import Display, Progress, StageProgress, StageState

__all__ = [
    "DTYPES",
    "Display",
    "LiveDisplay",
    "MemoryMeter",
    "PlainDisplay",
    "Progress",
    "QuietDisplay",
    "StageProgress",
    "StageState",
    "create_progress",
    "format_bytes",
    "free_memory",
    "resolve_device",
    "resolve_dtype",
    "set_threads",
    "versions",
]
