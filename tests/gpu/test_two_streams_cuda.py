"""Audio's kernels beside video's on a GPU: the very bits of one stream, whichever is late. Needs one CUDA device."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parent.parent / "models"))
from test_compiled_cuda import in_bf16, on_gpu
from test_memory_cuda import run
from test_transformer_float8 import in_float8
from test_transformer_passes import ALONE, TOGETHER, modalities, passes

from ltxgen.memory.stream import BlockStream, HostStore, hook
from ltxgen.models.transformer import Transformer, TransformerPass, Velocities
from ltxgen.models.transformer.cuda_streams import TwoStreams, use_two_streams
from ltxgen.models.transformer.graphs import GraphedPasses, graphed

HAS_FLOAT8 = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

REPEATS = 50
NUM_INPUTS = 5
LATE_CYCLES = 50_000  # some 30 us, longer than any of these kernels
GPU = torch.device("cuda", 0)
Step = list[TransformerPass]


class Late(TwoStreams):
    """One of the two begins late after each fork and each meeting, so that a wait that is missing is seen."""

    def __init__(self, audio_is_late: bool) -> None:
        super().__init__(GPU)
        self.audio_is_late = audio_is_late

    def fork(self) -> None:
        super().fork()
        self.delay()

    def meet(self, crossing: Sequence[Tensor]) -> None:
        super().meet(crossing)
        self.delay()

    def delay(self) -> None:
        if self.audio_is_late:
            with self.audio():
                torch.cuda._sleep(LATE_CYCLES)
        else:
            torch.cuda._sleep(LATE_CYCLES)

    def spoil(self) -> None:
        """Leave nothing in free memory that could be right by chance."""
        for stream in (torch.cuda.current_stream(), self._audio):
            with torch.cuda.stream(stream):
                _ = [torch.full((2**16,), torch.nan, device=GPU) for _ in range(32)]


def built(kernels: str, batched_tokens: int) -> Transformer:
    model = in_bf16()
    model.batched_tokens = batched_tokens
    if "fp8" in kernels:
        in_float8(model)
    if "fused" in kernels:
        pytest.importorskip("triton", reason="comes with torch's CUDA builds")
        from ltxgen.models.transformer.fused import use_fused_kernels

        use_fused_kernels(model)
    return model


def steps(kind: str) -> list[Step]:
    """A guided step from several latents: what is left of one in memory is wrong in the next."""
    step = passes(*map(on_gpu, modalities(kind, 1)), "guided")
    generator = torch.Generator(GPU).manual_seed(3)

    def other() -> Step:
        video, audio = (
            torch.randn(x.latents.shape, generator=generator, device=GPU) for x in (step[0].video, step[0].audio)
        )
        return [
            replace(each, video=replace(each.video, latents=video), audio=replace(each.audio, latents=audio))
            for each in step
        ]

    return [other() for _ in range(NUM_INPUTS)]


def same(found: Sequence[Velocities], wanted: Sequence[Velocities]) -> bool:
    pairs = [pair for one, other in zip(found, wanted, strict=True) for pair in zip(one, other, strict=True)]
    return all(x is y is None or torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("audio_is_late", [False, True])
@pytest.mark.parametrize("batched_tokens", [ALONE, TOGETHER])
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize(
    "kernels", ["plain", "fused", pytest.param("fp8, fused", marks=pytest.mark.skipif(not HAS_FLOAT8, reason="fp8"))]
)
@torch.inference_mode()
def test_two_streams_give_the_very_bits(kernels: str, recorded: bool, batched_tokens: int, audio_is_late: bool):
    model, each = built(kernels, batched_tokens), steps("no_audio_wanted" if kernels == "plain" else "levels")
    wanted = [model.forward_passes(step) for step in each]
    assert not same(wanted[0], wanted[1])
    streams = Late(audio_is_late)
    use_two_streams(model, streams)
    running = graphed(model, TOGETHER) if recorded else model
    found = []
    for number in range(REPEATS):
        streams.spoil()
        found.append(running.forward_passes(each[number % NUM_INPUTS]))
    wrong = [number for number, one in enumerate(found) if not same(one, wanted[number % NUM_INPUTS])]
    assert not wrong
    assert not streams.held
    if recorded:
        assert isinstance(running, GraphedPasses)
        assert all(one.replay is not None for one in running._recorded.values())


@pytest.mark.parametrize("audio_is_late", [False, True])
@torch.inference_mode()
def test_weights_that_are_streamed_come_before_both_and_go_after_both(audio_is_late: bool):
    each = steps("levels")
    wanted = [built("plain", ALONE).forward_passes(step) for step in each]
    with torch.inference_mode(False):
        model, weights = built("plain", ALONE), BlockStream(GPU, HostStore(GPU))
        for number, block in enumerate(model.transformer_blocks):
            weights.keep(number, dict(block.named_parameters()))
            hook(weights, number, block)
    streams = Late(audio_is_late)
    use_two_streams(model, streams)
    for number in range(REPEATS):
        streams.spoil()
        assert same(model.forward_passes(each[number % NUM_INPUTS]), wanted[number % NUM_INPUTS])
    weights.close()


def test_a_run_gives_the_same_latents(tmp_path: Path):
    one, two = (run(tmp_path / name, f"runtime.streams={name}") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
