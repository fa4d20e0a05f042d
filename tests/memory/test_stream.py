"""Streaming between two places of a CPU: order of copies, reuse of buffers, changes, and what is left of it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from ltxgen.memory import stream as stream_module
from ltxgen.memory.aside import Aside
from ltxgen.memory.host import ALIGNMENT, host_buffer, packed_bytes, unpacked
from ltxgen.memory.stream import BlockStream, DiskStore, HostStore, hook, streamed_blocks

CPU = torch.device("cpu")


class Diary(HostStore):
    """A store on the host that writes down what is copied."""

    def __init__(self, diary: list[str]) -> None:
        super().__init__(CPU)
        self.diary = diary

    def fill(self, block: int, buffer: Tensor, weights: Mapping[str, Tensor]) -> None:
        self.diary.append(f"copy {block}")
        super().fill(block, buffer, weights)


class Block(nn.Module):
    def __init__(self, number: int, diary: list[str]) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.number, self.diary = number, diary
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        self.diary.append(f"run {self.number}")
        return self.linear(x).tanh()


def streaming(num_blocks: int, diary: list[str], store: object = None) -> tuple[BlockStream, list[Block], list[dict]]:
    """Blocks whose weights were taken over by a stream, and what these were."""
    torch.manual_seed(0)
    stream = BlockStream(CPU, store or Diary(diary))
    blocks = [Block(number, diary) for number in range(num_blocks)]
    weights = [{name: each.clone() for name, each in block.named_parameters()} for block in blocks]
    for number, block in enumerate(blocks):
        stream.keep(number, dict(block.named_parameters()))
        hook(stream, number, block)
    return stream, blocks, weights


def run(blocks: list[Block], weights: list[dict]) -> bool:
    """Whether all blocks one after the other give what their weights give."""
    x = y = torch.ones(2, 3)
    for block, weight in zip(blocks, weights, strict=True):
        x = block(x)
        y = nn.functional.linear(y, weight["linear.weight"], weight["linear.bias"]).tanh()
    return torch.equal(x, y)


def test_the_next_block_is_copied_into_the_buffer_that_got_free():
    diary: list[str] = []
    stream, blocks, weights = streaming(4, diary)
    assert run(blocks, weights)
    assert diary[:8] == ["copy 0", "copy 1", "run 0", "copy 2", "run 1", "copy 3", "run 2", "copy 0"]
    assert run(blocks, weights)  # the next sweep finds its first blocks copied
    assert diary.count("copy 0") == 3
    assert [line for line in diary if line.startswith("run")] == [f"run {n}" for n in [0, 1, 2, 3] * 2]
    assert len(stream._slots) == stream_module.NUM_SLOTS


@pytest.mark.parametrize("num_blocks", [1, 2, 3, 5])
def test_any_number_of_blocks(num_blocks):
    _, blocks, weights = streaming(num_blocks, [])
    assert all(run(blocks, weights) for _ in range(3))


def test_a_sweep_may_begin_anywhere():
    _, blocks, weights = streaming(4, [])
    assert run(blocks, weights)
    assert run(blocks[2:], weights[2:])
    assert run(blocks[:2], weights[:2])


def test_parameters_are_on_the_device_only_as_their_block_runs():
    stream, blocks, _ = streaming(3, [])
    at_rest = blocks[1].linear.weight.data_ptr()
    seen = []
    blocks[1].linear.register_forward_hook(lambda module, *_: seen.append(module.weight.data_ptr()))
    blocks[0](torch.ones(1, 3))
    blocks[1](torch.ones(1, 3))
    assert blocks[1].linear.weight.data_ptr() == at_rest
    (running,) = seen
    assert running in [view["linear.weight"].data_ptr() for slot in stream._slots for view in slot.views.values()]
    assert running != at_rest


def test_a_change_reaches_blocks_that_were_copied_before_it():
    stream, blocks, weights = streaming(3, [])
    assert run(blocks, weights)
    stream.change(0, "linear.weight", lambda weight: weight.mul_(2), False)
    weights[0]["linear.weight"] = weights[0]["linear.weight"] * 2
    assert run(blocks, weights)
    stream.change(0, "linear.weight", lambda weight: weight.fill_(1), True)
    weights[0]["linear.weight"] = torch.ones(3, 3)
    assert run(blocks, weights)


def from_disk(stored: list[dict], reads: list[tuple[int, str]]) -> DiskStore:
    def read(block: int, name: str) -> Tensor:
        reads.append((block, threading.current_thread().name))
        return stored[block][name].clone()

    return DiskStore(read)


def test_blocks_from_disk_are_read_by_a_thread_and_changed_each_time():
    stored: list[dict] = []
    reads: list[tuple[int, str]] = []
    stream, blocks, weights = streaming(3, [], from_disk(stored, reads))
    stored.extend(weights)
    assert run(blocks, weights)
    assert all(thread.startswith("weights") for _, thread in reads)
    stream.change(1, "linear.bias", lambda bias: bias.add_(1), False)
    stream.change(1, "linear.bias", lambda bias: bias.mul_(3), False)
    changed = [dict(each) for each in weights]
    changed[1]["linear.bias"] = (weights[1]["linear.bias"] + 1) * 3
    assert run(blocks, changed)
    assert run(blocks, changed)
    stream.change(1, "linear.bias", lambda bias: pytest.fail("nothing to fill: it is read anyway"), True)
    assert run(blocks, weights)
    stream.close()
    assert stream._reader is not None
    with pytest.raises(RuntimeError, match="shutdown"):
        stream._reader.submit(print)


def test_an_error_of_the_reader_is_the_blocks():
    def read(block: int, name: str) -> Tensor:
        raise OSError("the disk is gone")

    stream, blocks, weights = streaming(2, [], DiskStore(read))
    with pytest.raises(OSError, match="the disk is gone"):
        run(blocks, weights)
    with contextlib.suppress(OSError):
        stream.close()


def test_freed_buffers_come_again():
    stream, blocks, weights = streaming(3, [])
    assert run(blocks, weights)
    stream.free()
    assert not stream._slots
    assert run(blocks, weights)


@pytest.mark.parametrize(
    ("num_blocks", "num_kept", "expected"),
    [(4, 0, [0, 1, 2, 3]), (4, 4, []), (4, 3, [2]), (6, 4, [1, 4]), (48, 24, list(range(1, 48, 2)))],
)
def test_streamed_blocks_are_spread(num_blocks, num_kept, expected):
    assert streamed_blocks(num_blocks, num_kept) == expected


def test_tensors_in_a_buffer_look_like_any_other():
    likes = {"a": torch.empty(3, 5, dtype=torch.bfloat16), "b": torch.empty(()), "c": torch.empty(0, 2)}
    buffer = host_buffer(packed_bytes(likes.values()), CPU)
    made = unpacked(buffer, likes)
    assert packed_bytes(likes.values()) == 2 * ALIGNMENT
    for name, tensor in made.items():
        assert (tensor.shape, tensor.dtype) == (likes[name].shape, likes[name].dtype)
        assert (tensor.storage_offset(), tensor.is_contiguous()) == (0, True)
    assert made["b"].data_ptr() - made["a"].data_ptr() == ALIGNMENT
    made["a"].fill_(1)
    made["b"].fill_(2)
    assert torch.equal(made["a"].float(), torch.ones(3, 5))


def test_components_set_aside_come_back_as_they_were():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).requires_grad_(False)
    before = {name: each.clone() for name, each in net.state_dict().items()}
    tensors = [*net.parameters(), *net.buffers()]
    aside = Aside(CPU)
    with torch.inference_mode():
        for _ in range(2):
            on_device = [each.data_ptr() for each in tensors]
            aside.set_aside("net", tensors)
            assert all(each.data_ptr() not in on_device for each in tensors)
            aside.bring_back("net")
            assert all(torch.equal(each, before[name]) for name, each in net.state_dict().items())
            net[0].weight.add_(1)  # a LoRA, say
            before["0.weight"] += 1
    aside.bring_back("unknown")
    assert not net[0].weight.is_inference()
