"""Weights read ahead through page-locked buffers to a GPU, beside what it computes. Needs a CUDA device with 4 GB."""

import os

import pytest
import torch

from ltxgen.artifacts import read_ahead, source
from ltxgen.artifacts.artifact import ResolvedArtifact
from ltxgen.artifacts.components import COMPONENTS, BuildOptions, artifact_of
from ltxgen.artifacts.load import load_component
from ltxgen.artifacts.read_ahead import ByteRange, ReadAhead
from ltxgen.models.transformer.float8 import Float8Layers
from ltxgen.runtime.clock import Moment

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("float8", [None, Float8Layers()], ids=["plain", "fp8"])
@pytest.mark.parametrize("name", ["transformer", "text_encoder", "vocoder"])
def test_components_are_those_of_plain_reads(tiny_set, monkeypatch, name, float8):
    path = tiny_set.file(artifact_of(name))
    artifact = ResolvedArtifact(artifact_of(name), path, place="test", reason="test")
    options = BuildOptions(float8=float8)
    found = load_component(name, artifact, "cuda", torch.bfloat16, options).state_dict()
    monkeypatch.setattr(source, "READ_AHEAD_FOR", ())
    wanted = load_component(name, artifact, "cuda", torch.bfloat16, options).state_dict()
    assert found.keys() == wanted.keys()
    for key in wanted:
        assert found[key].is_cuda
        assert found[key].dtype == wanted[key].dtype
        assert torch.equal(found[key].float(), wanted[key].float()), key


def test_a_buffer_is_not_read_into_before_its_copy_is_done(tmp_path):
    """Copies wait for long kernels, while the file is long read; the ring is far smaller than the file."""
    content = os.urandom(2**24)
    (tmp_path / "file").write_bytes(content)
    x = torch.randn(8192, 8192, device="cuda")
    found = torch.empty(2**24, dtype=torch.uint8, device="cuda")
    with (
        (tmp_path / "file").open("rb") as file,
        ReadAhead(
            [ByteRange(file.fileno(), 0, 2**24)], torch.device("cuda"), piece_bytes=2**18, num_buffers=4
        ) as ahead,
    ):
        assert ahead._pieces[0].buffer.is_pinned()
        for _ in range(20):
            x = (x @ x).clamp(-1, 1)
        assert ahead.fill(found)
    assert bytes(found.cpu().numpy()) == content
    assert read_ahead.COPIES < 4


def test_loading_does_not_wait_for_what_is_computed(tiny_set):
    path = tiny_set.file("checkpoint")
    artifact = ResolvedArtifact("checkpoint", path, place="test", reason="test")
    load_component(COMPONENTS["vocoder"], artifact, "cuda", torch.float32)
    x = torch.randn(8192, 8192, device="cuda")
    torch.cuda.synchronize()
    for _ in range(200):  # seconds of work
        x = (x @ x).clamp(-1, 1)
    done = torch.cuda.Event()
    done.record()
    load_component(COMPONENTS["vocoder"], artifact, "cuda", torch.float32)
    assert not done.query()


def test_a_moment_is_when_the_device_was_there():
    x = torch.randn(8192, 8192, device="cuda")
    moments = [Moment()]
    for _ in range(50):
        x = (x @ x).clamp(-1, 1)
    moments.append(Moment())
    first, second = (moment.at() for moment in moments)
    assert second - first > 0.02
