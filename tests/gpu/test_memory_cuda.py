"""Memory policies on a GPU: the numbers of `last_use`, and copies beside computing. Needs a CUDA device with 4 GB."""

import gc

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ltxgen.cli import main
from ltxgen.memory.host import host_buffer
from ltxgen.memory.stream import BlockStream, DiskStore, HostStore, hook

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

WORDS = (
    "+recipe=ltx23_two_stage",
    "model=ltx23_tiny",
    "runtime.device=cuda",
    "runtime.compile=none",
    "request.height=128",
    "request.width=192",
    "request.num_frames=17",
    "stages.base.steps=4",
    "output.tensors=true",
    "+stages.base.loras.distilled=0.25",
)


def run(folder, *words):
    with pytest.raises(SystemExit) as exit_:
        main([*WORDS, f"output.dir={folder}", *words])
    assert exit_.value.code == 0
    return load_file(folder / "tensors.safetensors")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return run(tmp_path_factory.mktemp("plain") / "run", "memory=last_use")


@pytest.mark.parametrize(
    "words",
    [
        ("memory=swap",),
        ("memory=stream", "memory.blocks_on_device=0", "memory.stream_from=host"),
        ("memory=stream", "memory.blocks_on_device=1", "memory.stream_from=host"),
        ("memory=stream", "memory.blocks_on_device=0", "memory.stream_from=disk"),
    ],
    ids=["swap", "host", "mixed", "disk"],
)
def test_policies_give_the_same_latents(plain, tmp_path, words):
    found = run(tmp_path / "run", *words)
    assert found.keys() == plain.keys()
    for name in ("context.video.positive", "base.final.video", "base.final.audio", "refine.final.video"):
        assert torch.equal(found[name], plain[name]), name


def test_host_memory_is_locked_exactly_and_given_back():
    buffer = host_buffer(3 * 2**20 + 5, torch.device("cuda"))
    assert buffer.is_pinned()
    assert buffer.numel() == 3 * 2**20 + 5
    buffer.fill_(7)
    assert buffer.to("cuda", non_blocking=True).sum().item() == 7 * buffer.numel()
    address = buffer.data_ptr()
    del buffer
    gc.collect()
    again = host_buffer(3 * 2**20 + 5, torch.device("cuda"))  # most likely at the same address, free to be locked
    assert again.is_pinned(), address


@pytest.mark.parametrize("source", ["host", "disk"])
@torch.inference_mode()
def test_blocks_wait_for_their_weights_and_keep_them_while_they_run(source):
    """Long kernels and large copies, with nothing but events between them."""
    device, width, num_blocks = torch.device("cuda"), 4096, 6
    with torch.inference_mode(False):
        weights = [torch.full((width, width), 1.0 + number) for number in range(num_blocks)]
        blocks = [nn.Linear(width, width, bias=False, device="meta") for _ in weights]
        store = HostStore(device) if source == "host" else DiskStore(lambda block, name: weights[block].clone())
        stream = BlockStream(device, store)
        for number, block in enumerate(blocks):
            block.weight = nn.Parameter(weights[number].clone(), requires_grad=False)
            stream.keep(number, {"weight": block.weight})
            hook(stream, number, block)
    x = torch.full((2048, width), 1 / width, device=device)
    for _ in range(3):
        sums = torch.stack([block(x).mean() for block in blocks])  # no waiting before the last
        expected = torch.arange(1.0, num_blocks + 1, device=device)
        torch.testing.assert_close(sums, expected, rtol=1e-5, atol=0)
    stream.close()
