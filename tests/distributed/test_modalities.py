"""A modality that is given, one that is kept and one that is absent, each on two ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ltxgen
from ltxgen.media.sound import Sound, write_wav

TINY = ("model=ltx23_tiny", "stages.base.steps=2", "output.tensors=true", "cache=off")
SMALL = ("request.height=64", "request.width=64", "request.num_frames=9")


@pytest.mark.parametrize(
    ("recipe", "parallel", "words"),
    [
        ("ltx23_audio_to_video", "ulysses", ("request.audio.path=song.wav",)),
        ("ltx23_text_to_audio", "guidance", ()),
    ],
)
def test_two_ranks_give_what_one_does(run_ltxgen, tmp_path: Path, recipe: str, parallel: str, words: tuple[str, ...]):
    samples = torch.randn(1, 2, 16000, generator=torch.Generator().manual_seed(0)) * 0.1
    write_wav(tmp_path / "song.wav", Sound(samples, 16000))
    common = (f"+recipe={recipe}", *TINY, *SMALL, *words)
    alone = run_ltxgen(*common, "output.dir=one", cwd=tmp_path)
    assert alone.code == 0, alone.err
    command = (sys.executable, "-m", "ltxgen", *common, f"parallel={parallel}", "parallel.num_processes=2")
    path = {**os.environ, "PYTHONPATH": str(Path(ltxgen.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    shared = subprocess.run(
        (*command, "output.dir=two"), cwd=tmp_path, env=path, capture_output=True, text=True, timeout=120
    )
    assert shared.returncode == 0, shared.stderr
    one, two = (load_file(tmp_path / folder / "tensors.safetensors") for folder in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        if ".final." in name or name == "audio.waveform":
            torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-4)
