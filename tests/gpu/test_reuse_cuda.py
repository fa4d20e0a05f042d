"""Reuse on a GPU: bits that stay, CUDA graphs beside it, weights that stream. Needs one CUDA device."""

from __future__ import annotations

import pytest
import torch
from test_cuda import relative_l2, run

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

BF16 = ("runtime.device=cuda", "runtime.dtype=bfloat16", "cache=off")
WHOLE = ("stages.base.reuse.start=0", "stages.base.reuse.end=1")
INTERVAL = ("reuse@stages.base.reuse=interval", *WHOLE)
FIRST_BLOCK = ("reuse@stages.base.reuse=first_block", *WHOLE)
FINAL = ("base.final.video", "base.final.audio")


def test_a_threshold_of_0_is_bit_for_bit_none(tmp_path):
    plain = run(tmp_path / "none", *BF16)
    never = run(tmp_path / "never", *BF16, *FIRST_BLOCK, "stages.base.reuse.threshold=0")
    assert all(torch.equal(plain[name], never[name]) for name in plain)


@pytest.mark.parametrize("words", [INTERVAL, (*FIRST_BLOCK, "stages.base.reuse.threshold=1e9")])
def test_graphs_change_no_bit(tmp_path, words):
    found = [run(tmp_path / each, *BF16, *words, f"runtime.graphs={each}") for each in ("never", "always")]
    assert all(torch.equal(found[0][name], found[1][name]) for name in FINAL)


def test_blocks_may_stream(tmp_path):
    words = ("runtime.device=cuda", "cache=off", *FIRST_BLOCK, "stages.base.reuse.threshold=1e9")
    stays = run(tmp_path / "stays", *words)
    streams = run(tmp_path / "streams", *words, "memory=stream", "memory.blocks_on_device=0")
    for name in (*FINAL, "refine.final.video"):
        assert relative_l2(streams[name], stays[name]) < 1e-4, name
