"""Small videos whose every frame is one known colour, and folders that look like a sweep's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import yaml

from ltxgen.media import Mp4Settings, Mp4Writer

SIZE = (64, 96)  # height, width
NUM_FRAMES = 25
FPS = Fraction(25)


def grey_of(frame: int, shade: int) -> int:
    """The grey of a frame: it rises by 5 a frame from `shade`."""
    return shade + 5 * frame


def write_clip(path: Path, shade: int, num_frames: int = NUM_FRAMES, hertz: float = 1000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    greys = torch.tensor([grey_of(frame, shade) for frame in range(num_frames)], dtype=torch.uint8)
    times = torch.arange(int(num_frames / FPS * 48000)) / 48000
    fade = (torch.minimum(times, times.flip(0)) * 20).clamp(max=1)  # codecs overshoot where a tone is cut
    tone = 0.5 * fade * torch.sin(2 * torch.pi * hertz * times)
    with Mp4Writer(path, FPS, Mp4Settings(crf=1)) as mp4:
        mp4.write_frames(greys[:, None, None, None].expand(-1, *SIZE, 3))
        mp4.write_audio(torch.stack([tone, tone / 2]), 48000)
    return path


def write_run(folder: Path, shade: int, prompt: str = "a boat", **manifest: Any) -> Path:
    write_clip(folder / "video.mp4", shade)
    recipe = {"name": "tiny", "request": {"prompt": prompt, "seed": shade}, "output": {"dir": str(folder)}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    stages = {
        "prompt": {"seconds": 0.01, "load_seconds": 0.0, "peak_bytes": 2**30, "from": "cache", "key": "aa"},
        "base": {"seconds": 3.0, "load_seconds": 1.0, "peak_bytes": 2**31, "from": "run", "key": "bb"},
    }
    content = {"recipe": "tiny", "request": {"seed": shade, "fps": "25"}, "stages": stages, "seconds": 4.5, **manifest}
    (folder / "manifest.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def write_sweep(folder: Path, jobs: Sequence[dict[str, Any]], loads: dict[str, int] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    numbered = [{"folder": str(number), "status": "done", **job} for number, job in enumerate(jobs)]
    (folder / "sweep.json").write_text(json.dumps({"jobs": numbered, "loads": loads or {}}), encoding="utf-8")
    return folder
