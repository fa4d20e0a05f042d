"""The README's own stage, written and run as it says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)


def test_the_stage_of_the_readme_runs(tmp_path: Path, tiny_set, offline):
    for name in ("ltxgen", "conf", "recipes"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (code,) = (block for block in blocks("python") if "class VolumeConfig" in block)
    (choice,) = (block for block in blocks("yaml") if "kind: volume" in block)
    (commands,) = (block for block in blocks("bash") if "ltxgen cp ltx23_two_stage quiet" in block)
    (tmp_path / "ltxgen/stage/volume.py").write_text(code, encoding="utf-8")
    (tmp_path / "conf/stage/volume.yaml").write_text(choice, encoding="utf-8")
    small = "request.height=64 request.width=64 request.num_frames=9"
    lines = [
        line.replace("ltxgen", f"{sys.executable} -m ltxgen", 1)
        for line in commands.replace("steps=4", "steps=2").splitlines()
    ]
    *preparing, first, _ = lines
    script = "\n".join(["set -e", *preparing, f"{first} {small} output.dir=out"])
    ended = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads((tmp_path / "out/manifest.json").read_text())["stages"]["volume"]["gain"] == 0.5
