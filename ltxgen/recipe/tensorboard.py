"""A run's steps, stages and pictures for TensorBoard, which is optional: `pip install tensorboard`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

from ltxgen.media.previews import PREVIEWS

BOARD = "tensorboard"
_FLUSH_SECONDS = 10
_FRAMES = 16  # of a preview that are shown, at most


def lacking_tensorboard() -> str | None:
    """Why there is no TensorBoard to write for; None where there is."""
    if find_spec("tensorboard"):
        return None
    return "TensorBoard is not installed: pip install tensorboard, or leave it out (output.log=true needs nothing)"


class Board(AbstractContextManager["Board"]):
    """Writes events into `folder`. `run` is where the run's own files are: previews, as they come, and the contact
    sheet at the end."""

    def __init__(self, folder: Path, run: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), flush_secs=_FLUSH_SECONDS)
        self._run = run
        self._shown: set[Path] = set()

    def __call__(self, event: Mapping[str, Any]) -> None:
        match event["event"]:
            case "run began":
                self._writer.add_text("run", f"```\n{json.dumps(event, indent=2, ensure_ascii=False)}\n```")
            case "step":
                self._step(event["stage"], event["number"], event)
            case "stage ended":
                self._writer.add_scalar(f"stages/{event['stage']}_seconds", event["seconds"])
            case "run ended":
                self._contact_sheet()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def _step(self, stage: str, number: int, event: Mapping[str, Any]) -> None:
        self._writer.add_scalar(f"{stage}/seconds", event["seconds"], number)
        self._writer.add_scalar(f"{stage}/sigma", event["sigma"], number)
        if event["peak_bytes"] is not None:
            self._writer.add_scalar(f"{stage}/peak_gib", event["peak_bytes"] / 2**30, number)
        for path in sorted({*(self._run / PREVIEWS).glob("[!.]*.png")} - self._shown):
            self._shown.add(path)
            self._writer.add_images(f"{stage}/preview", _frames(path), number, dataformats="NHWC")

    def _contact_sheet(self) -> None:
        path = self._run / "contact_sheet.png"
        if path.exists():
            with Image.open(path) as sheet:
                self._writer.add_image("contact_sheet", np.asarray(sheet.convert("RGB")), dataformats="HWC")


def _frames(path: Path) -> np.ndarray:
    """Frames (N, H, W, 3) uint8 of an animated picture, evenly chosen."""
    with Image.open(path) as picture:
        frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(picture)]
    chosen = np.linspace(0, len(frames) - 1, min(_FRAMES, len(frames))).round().astype(int)
    return np.stack([frames[number] for number in chosen])
