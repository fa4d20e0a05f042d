"""The recipe inside a video: any text survives, and a stranger's video is only ever read."""

from __future__ import annotations

import json
from pathlib import Path

import clips
import pytest
import torch
import yaml

from ltxgen.config.errors import Refusal
from ltxgen.media import Mp4Writer
from ltxgen.media.provenance import Provenance, read_provenance

PROMPT = (
    "猫 🐱 \"says\" 'hi',\n\ttwo lines = {a: b} # ${x} \\ \u00a0\u2028 </script> %s \x7f é\u0301 " + "long " * 20000
)


def video_with(comment: str, path: Path) -> Path:
    with Mp4Writer(path, clips.FPS) as mp4:
        mp4.write_frames(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))
        mp4.comment = comment
    return path


def test_any_text_survives(tmp_path: Path):
    recipe = "# @package _global_\n" + yaml.safe_dump({"request": {"prompt": PROMPT}}, allow_unicode=True)
    made = Provenance(recipe, {"seconds": 1.5, "notes": [PROMPT]})
    read = read_provenance(video_with(made.as_comment(), tmp_path / "video.mp4"))
    assert read == made
    assert yaml.safe_load(read.recipe)["request"]["prompt"] == PROMPT


def test_a_folder_says_the_same(tmp_path: Path):
    clips.write_run(tmp_path / "run", 10, prompt="a boat")
    made = read_provenance(tmp_path / "run")
    assert yaml.safe_load(made.recipe)["request"]["prompt"] == "a boat"
    assert made.manifest["seconds"] == 4.5


@pytest.mark.parametrize(
    ("comment", "message"),
    [
        ("", "holds no recipe"),
        ("made with care", "holds no recipe"),
        ("[1, 2]", "holds no recipe"),
        ('{"workflow": {}}', "holds no recipe"),
        ('{"ltxgen":1}', "can't be read"),
        ('{"ltxgen":1,"recipe":5,"manifest":{}}', "must be a text"),
        ('{"ltxgen":1,"recipe":"a: 1","manifest":[]}', "must be a text"),
        ('{"ltxgen":1,"recipe":"just words","manifest":{}}', "no mapping in YAML"),
        ('{"ltxgen":1,"recipe":"a: !!python/object/apply:os.system [ls]","manifest":{}}', "can't be read"),
        (json.dumps({"ltxgen": 1, "recipe": "a: \x1b[31m", "manifest": {}}, separators=(",", ":")), "can't be read"),
        ('{"ltxgen":1,"recipe":' + "[" * 50000, "can't be read"),
    ],
)
def test_other_comments_are_refused(tmp_path: Path, comment: str, message: str):
    with pytest.raises(Refusal, match=message):
        read_provenance(video_with(comment, tmp_path / "video.mp4"))


def test_what_is_no_video_and_no_run_is_refused(tmp_path: Path):
    (tmp_path / "text.mp4").write_text("text")
    for place, message in (
        (tmp_path / "nothing", "no such file"),
        (tmp_path / "text.mp4", "no readable video"),
        (tmp_path, "no folder of a run: recipe.yaml"),
    ):
        with pytest.raises(Refusal, match=message):
            read_provenance(place)
