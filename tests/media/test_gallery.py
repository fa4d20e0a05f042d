"""What the page of a sweep is made of: its data, its pictures, and that nothing in a run can change the page itself."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import clips
import numpy as np
import pytest
from PIL import Image

import ltxgen
from ltxgen.config.errors import Refusal
from ltxgen.media.compare import compare_runs
from ltxgen.media.gallery import pictures, write_comparison, write_gallery

HOSTILE = "</script><script>document.title='x'</script><img src=x onerror=alert(1)> \"'`{{style}} ${7*7} \u2028 猫🐱"


class Outline(HTMLParser):
    """Every element's name and attributes, and the text of each script."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] == "script":
            self.scripts[-1] += data


def outline(page: Path) -> Outline:
    parsed = Outline()
    parsed.feed(page.read_text(encoding="utf-8"))
    return parsed


def data_of(page: Path) -> dict[str, Any]:
    return json.loads(outline(page).scripts[0])


def picture(address: str) -> Image.Image:
    head, _, content = address.partition(",")
    assert head.startswith("data:image/")
    return Image.open(io.BytesIO(base64.b64decode(content)))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    for number, shade in enumerate((10, 60)):
        clips.write_run(folder / str(number), shade, prompt=HOSTILE)
    jobs = [
        {"overrides": ["+recipe=tiny", "request.seed=1", f"request.prompt={HOSTILE}"]},
        {"overrides": ["+recipe=tiny", "request.seed=2"]},
        {"overrides": ["+recipe=tiny", "request.seed=3"], "status": "failed", "error": HOSTILE},
        {"overrides": ["+recipe=tiny", "~stages.write", "request.seed=4"], "status": "pending"},
    ]
    return clips.write_sweep(folder, jobs, {"transformer": 1})


def test_data_of_a_sweep(sweep: Path):
    page = write_gallery(sweep)
    assert page == sweep / "index.html"
    data = data_of(page)
    assert (data["title"], data["loads"]) == ("tiny", {"transformer": 1})
    first, second, failed, pending = data["runs"]
    assert first["overrides"] == [["recipe", "tiny"], ["request.seed", "1"], ["request.prompt", HOSTILE]]
    assert first["prompt"] == HOSTILE
    assert [stage["from"] for stage in first["stages"]] == ["cache", "run"]
    assert first["links"] == {
        name: f"0/{name}" for name in ("video.mp4", "recipe.yaml", "manifest.json")
    }  # what is not there is no link
    video = second["video"]
    assert (video["address"], video["width"], video["height"]) == ("1/video.mp4", 96, 64)
    assert (video["fps"], video["num_frames"]) == (25, clips.NUM_FRAMES)
    assert (failed["status"], failed["error"], failed["video"]) == ("failed", HOSTILE, None)
    assert pending["overrides"][1] == ["stages.write", "(removed)"]


def test_texts_of_a_run_stay_texts(sweep: Path):
    page = write_gallery(sweep)
    found = outline(page)
    assert [tag for tag, _ in found.elements].count("script") == 2
    assert not [tag for tag, _ in found.elements if tag == "img"]
    assert not [name for _, attributes in found.elements for name in attributes if name.startswith("on")]
    policy = next(
        attributes["content"] for tag, attributes in found.elements if tag == "meta" and "http-equiv" in attributes
    )
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy


def test_a_page_of_its_own(sweep: Path):
    """Nothing is loaded from anywhere but the folder."""
    text = write_gallery(sweep).read_text(encoding="utf-8")
    scripts_and_styles = re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.DOTALL)
    addresses = re.findall(r"https?://[^\s\"'<>)]+", scripts_and_styles)
    assert set(addresses) <= {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not re.findall(r"@import|url\(", scripts_and_styles)


def test_a_video_is_looked_at_once(sweep: Path, monkeypatch: pytest.MonkeyPatch):
    write_gallery(sweep)
    before = (sweep / "index.html").read_text(encoding="utf-8")
    monkeypatch.delattr(pictures.av, "open")
    assert write_gallery(sweep).read_text(encoding="utf-8") == before


def test_pictures_of_a_video(tmp_path: Path):
    path = clips.write_clip(tmp_path / "video.mp4", shade=100, hertz=1000)
    look = pictures.look_at(path)
    assert look.sound is not None
    poster = np.asarray(picture(look.poster).convert("RGB"))
    assert poster.shape == (64, 96, 3)
    assert np.abs(poster.astype(int) - 100).max() <= 4
    wave = np.asarray(picture(look.sound["waveform"]).convert("RGBA"))
    drawn = wave[..., 3] > 0
    above, below = drawn[: len(drawn) // 2].sum(), drawn[len(drawn) // 2 :].sum()
    assert below / above == pytest.approx(0.5, abs=0.1)  # the right channel is half as loud
    heat = np.asarray(picture(look.sound["spectrogram"]).convert("L")).astype(float)
    middle = heat[:, 100:-100].mean(axis=1)
    octaves = np.log2(24000 / 50)
    expected = len(middle) * (1 - np.log2(1000 / 50) / octaves)
    assert abs(int(middle.argmax()) - expected) <= 2
    assert middle.max() > 200
    assert np.median(middle) < 40
    assert look.sound["peak"] == pytest.approx(0.5, abs=0.05)


def test_silence_and_short_sounds_can_be_drawn():
    for samples in (np.zeros((2, 0)), np.zeros((2, 5)), np.zeros((2, 48000)), np.ones((2, 3))):
        assert pictures.waveform_picture(samples).size == pictures.spectrogram_picture(samples, 48000).size


@pytest.mark.parametrize(
    "sweep_text",
    [
        "no json",
        "{}",
        "[]",
        '{"jobs": [{"folder": "0", "overrides": [], "status": "odd"}]}',
        '{"jobs": [{"folder": "../0", "overrides": [], "status": "done"}]}',
        '{"jobs": [{"folder": "/etc", "overrides": [], "status": "done"}]}',
        '{"jobs": [{"folder": "0", "overrides": "a=1", "status": "done"}]}',
    ],
)
def test_a_bad_sweep_is_refused(tmp_path: Path, sweep_text: str):
    (tmp_path / "sweep.json").write_text(sweep_text)
    with pytest.raises(Refusal, match=r"sweep\.json"):
        write_gallery(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json"]


def test_a_run_that_is_broken_says_so_and_leaves_the_others(tmp_path: Path):
    clips.write_run(tmp_path / "0", 10)
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "video.mp4").write_bytes(b"no video")
    (tmp_path / "1" / "manifest.json").write_text("[1]")
    (tmp_path / "1" / "recipe.yaml").write_text("a: [")
    clips.write_sweep(tmp_path, [{"overrides": ["a=0"]}, {"overrides": ["a=1"]}])
    good, bad = data_of(write_gallery(tmp_path))["runs"]
    assert (good["faults"], good["video"]["num_frames"]) == ([], clips.NUM_FRAMES)
    assert bad["video"] is None
    assert [fault.split(" ")[0] for fault in bad["faults"]] == ["manifest.json", "recipe.yaml", "video.mp4"]


def test_a_comparison(tmp_path: Path):
    a, b = clips.write_run(tmp_path / "runs" / "a b", 10), clips.write_run(tmp_path / "runs" / "b", 14)
    page = write_comparison(a, b, compare_runs(a, b), tmp_path / "pages" / "c.html")
    data = data_of(page)
    assert [run["video"]["address"] for run in data["runs"]] == ["../runs/a%20b/video.mp4", "../runs/b/video.mp4"]
    assert len(data["psnr"]) == clips.NUM_FRAMES
    assert data["psnr"][3] == pytest.approx(20 * np.log10(255 / 4), abs=2)  # 4 levels apart, and the codec
    assert data["differences"] == [["request.seed", "10", "14"]]
    assert ["latents", "not compared"] in [row[:2] for row in data["measures"]]
    same = data_of(write_comparison(a, a, compare_runs(a, a), page))
    assert same["psnr"] == [None] * clips.NUM_FRAMES


def test_the_wheel_holds_the_page(tmp_path: Path):
    pytest.importorskip("hatchling", reason="hatchling, which builds the wheel, is not installed")
    root = Path(ltxgen.__file__).parent.parent
    if not (root / "pyproject.toml").exists():
        pytest.skip("runs from a checkout")
    copy = tmp_path / "checkout"
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns(".git", ".venv", "outputs", "tests", "shared"))
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=copy, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    parts = {path.name for path in (root / "ltxgen" / "media" / "gallery" / "page").iterdir()}
    assert {f"ltxgen/media/gallery/page/{part}" for part in parts} <= names
