"""A picture of every recipe, made with its embedded model, for recipes/README.md.

    python docs/stills.py              # writes docs/recipes/NAME.jpg

Three frames of each video side by side; of a sound its waveform. Clips, pictures and sounds that recipes start from
are those of the first one. The weights are random: what can be seen is how recipes differ, and nothing else.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from ltxgen.media.images import save_png
from ltxgen.media.read import read_video
from ltxgen.media.sound import Sound, read_sound, write_wav

ROOT = Path(__file__).resolve().parent.parent
FIRST = "ltx23_two_stage"
HEIGHT = 96  # of a still, in pixels
SIZE = ("request.height=128", "request.width=192", "request.num_frames=17")
CLIP = ("request.source.path=clip.mp4", "request.span=[0.2,0.5]")
WORDS = {  # what a recipe starts from, and sizes where these don't fit
    "ltx23_audio_to_video": (*SIZE, "request.audio.path=song.wav"),
    "ltx23_extend": (CLIP[0], "request.num_frames=33"),
    "ltx23_ic_lora": (*SIZE, "request.references=[{path: clip.mp4}]"),
    "ltx23_keyframes": (*SIZE, "request.images=[{path: first.png}, {path: last.png, frame: -1}]"),
    "ltx23_retake": CLIP,
    "ltx23_retake_distilled": CLIP,
    "ltx23_three_stage": ("request.height=192", "request.width=384", SIZE[2]),
}


def main() -> None:
    names = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
    stills = ROOT / "docs" / "recipes"
    stills.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in (FIRST, *(name for name in names if name != FIRST)):
            made = run(name, folder)
            if name == FIRST:
                write_inputs(made, folder)
            still = wave(made / "sound.wav") if (made / "sound.wav").exists() else strip(made / "video.mp4")
            still.save(stills / f"{name}.jpg", quality=60, optimize=True)
            print(f"{name}: {(stills / f'{name}.jpg').stat().st_size} bytes", flush=True)


def run(name: str, folder: Path) -> Path:
    model = "model=ltx2_tiny" if name.startswith("ltx2_") else "model=ltx23_tiny"
    words = (f"+recipe={name}", model, *WORDS.get(name, SIZE), "runtime.device=cpu", f"output.dir={folder / name}")
    subprocess.run([sys.executable, "-m", "ltxgen", *words], cwd=folder, check=True, capture_output=True)
    return folder / name


def write_inputs(made: Path, folder: Path) -> None:
    clip = read_video(made / "video.mp4")
    (folder / "clip.mp4").write_bytes((made / "video.mp4").read_bytes())
    save_png(clip.frames[0], folder / "first.png")
    save_png(clip.frames[-1].flip(1), folder / "last.png")
    sound = read_sound(made / "video.mp4")
    assert sound is not None
    write_wav(folder / "song.wav", Sound(torch.cat([sound.waveform] * 2, dim=-1), sound.sample_rate))


def strip(video: Path) -> Image.Image:
    frames = read_video(video).frames.numpy()
    chosen = [Image.fromarray(frames[index]) for index in (0, len(frames) // 2, len(frames) - 1)]
    width = round(chosen[0].width * HEIGHT / chosen[0].height)
    still = Image.new("RGB", (3 * width, HEIGHT))
    for place, image in enumerate(chosen):
        still.paste(image.resize((width, HEIGHT), Image.Resampling.LANCZOS), (place * width, 0))
    return still


def wave(path: Path) -> Image.Image:
    sound = read_sound(path)
    assert sound is not None
    still = Image.new("RGB", (432, HEIGHT), (24, 24, 27))
    draw = ImageDraw.Draw(still)
    pieces = np.array_split(sound.waveform[0].mean(0).numpy(), still.width)
    for column, piece in enumerate(pieces):
        low, high = (HEIGHT / 2 * (1 - float(value)) for value in (piece.min(), piece.max()))
        draw.line([(column, high), (column, low)], fill=(94, 174, 255))
    return still


if __name__ == "__main__":
    main()
