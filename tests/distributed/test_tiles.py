"""Decoding a video's tiles on several ranks: the frames of one rank, bit for bit, and the whole command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor
from worlds import run_world

import ltxgen
from ltxgen.config.hardware import Hardware
from ltxgen.config.recipe import Request
from ltxgen.diffusion.numerics import Numerics
from ltxgen.models.transformer import TransformerConfig
from ltxgen.models.video_vae import VideoDecoder, VideoVAEConfig
from ltxgen.parallel.cost import CostModel
from ltxgen.parallel.plan import ParallelPlan
from ltxgen.parallel.shape import Choice, MeshShape
from ltxgen.recipe.run import Drop
from ltxgen.stage.decode_video import DecodeVideoConfig, TilingConfig
from ltxgen.stage.protocol import RunContext, Setting, StepProgress, Stream

WIDTH = 4
DECODER = {
    "latent_channels": WIDTH,
    "encoder_base_channels": WIDTH,
    "decoder_base_channels": WIDTH,
    "timestep_conditioning": False,
    "spatial_padding_mode": "zeros",
    "encoder_blocks": [
        ["compress_space_res", {}],
        ["compress_time_res", {}],
        ["compress_all_res", {}],
        ["compress_all_res", {"multiplier": 1}],
    ],
    "decoder_blocks": [
        ["compress_space", {"multiplier": 2}],
        ["compress_time", {"multiplier": 2}],
        ["compress_all", {"multiplier": 1}],
        ["compress_all", {"multiplier": 2}],
    ],
}
MODEL = TransformerConfig.from_metadata({"transformer": {"num_layers": 1, "caption_proj_before_connector": True}})
COST = CostModel(MODEL, {}, Hardware("none", 1.0, 1.0, 1.0, 1.0, 1.0, 1.0))
TIME = TilingConfig(temporal_tile_frames=16, temporal_overlap_frames=8)
ALL = TilingConfig(64, 32, 16, 8)
WORLDS = (2, 4)


@dataclass(frozen=True)
class Case:
    """Latents of `size` (F', H', W') and the number of their tiles."""

    size: tuple[int, int, int]
    tiling: TilingConfig | None
    num_tiles: int
    vae_tiles: bool = True


CASES = {
    "one_a_rank_of_4": Case((5, 1, 2), TIME, 4),
    "does_not_divide": Case((6, 2, 1), TIME, 5),
    "fewer_than_4_ranks": Case((4, 1, 1), TIME, 3),
    "space_and_time": Case((3, 2, 4), ALL, 6),
    "one_tile": Case((2, 2, 2), ALL, 1),
    "not_tiled": Case((3, 2, 2), None, 1),
    "rank_0_alone": Case((5, 1, 2), TIME, 4, vae_tiles=False),
}


@dataclass
class Decoded:
    """What a rank saw of one decoding."""

    chunks: list[Tensor]
    recorded: dict[str, Tensor]
    reported: dict[str, Any]
    described: dict[str, Any]
    num_decoded: int


def random_decoder(device: str) -> VideoDecoder:
    generator = torch.Generator().manual_seed(0)
    decoder = VideoDecoder(VideoVAEConfig.from_metadata(DECODER)).requires_grad_(False)
    for name, tensor in decoder.state_dict().items():
        value = torch.randn(tensor.shape, generator=generator)
        tensor.copy_(value.abs() + 0.5 if name.endswith("std-of-means") else value * tensor[0].numel() ** -0.5)
    return decoder.eval().to(device)


def decode(case: Case, shape: MeshShape, decoder: VideoDecoder, device: str) -> Decoded:
    """Run the stage; as the executor does, take its stream to the end on every rank."""
    parallel = ParallelPlan(Choice(shape, vae_tiles=case.vae_tiles), COST)
    request = Request(prompt="", default_negative_prompt="")
    setting = Setting(request, Numerics.named("current"), torch.device(device), torch.float32, parallel=parallel)
    stage = DecodeVideoConfig("latents", case.tiling).build("decode_video", setting)
    assert stage.infer({"latents": case.size}) == []
    recorded: dict[str, Tensor] = {}
    reported: dict[str, Any] = {}
    context = RunContext(Path(os.devnull), NoProgress(), recorded.__setitem__, reported.__setitem__, records=True)
    calls: list[Any] = []
    counting = decoder.register_forward_hook(lambda *call: calls.append(0))
    latents = torch.randn(1, WIDTH, *case.size, generator=torch.Generator().manual_seed(1)).to(device)
    try:
        (stream,) = stage.run({"latents": latents}, {"video_decoder": decoder}, context).values()
        chunks = list(stream)
    finally:
        counting.remove()
    return Decoded([chunk.cpu() for chunk in chunks], recorded, reported, stage.describe(), len(calls))


class NoProgress(StepProgress):
    def begin(self, num_steps: int, unit: str = "step") -> None: ...
    def advance(self, num_steps: int = 1, note: str = "") -> None: ...
    def note(self, text: str) -> None: ...


def decode_all(device: str) -> dict[str, tuple[Decoded, Decoded]]:
    """Every case on all ranks and on this one alone."""
    decoder, shape = random_decoder(device), MeshShape(ulysses=dist.get_world_size())
    return {
        name: (decode(case, shape, decoder, device), decode(case, MeshShape(), decoder, device))
        for name, case in CASES.items()
    }


Worlds = dict[int, list[dict[str, tuple[Decoded, Decoded]]]]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Worlds:
    """What each rank saw, by the number of ranks."""
    return {size: run_world(decode_all, size, tmp_path_factory.mktemp("world")) for size in WORLDS}


def check(ranks: Sequence[dict[str, tuple[Decoded, Decoded]]], name: str) -> None:
    (first, alone), *others = [rank[name] for rank in ranks]
    assert len(first.chunks) == len(alone.chunks) > 0
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(first.chunks, alone.chunks, strict=True))
    exact = first.recorded["decode_video.frames"]
    assert torch.equal(exact, alone.recorded["decode_video.frames"])
    assert exact.dtype == torch.float32
    assert (exact.abs() < 1).float().mean() > 0.5, "most of the random video is not clamped"
    assert all((other.chunks, other.recorded) == ([], {}) for other, _ in others)


@pytest.mark.parametrize("size", WORLDS)
@pytest.mark.parametrize("name", CASES)
def test_tiles_of_all_ranks_are_the_video_of_one(worlds: Worlds, size: int, name: str):
    check(worlds[size], name)


@pytest.mark.parametrize("size", WORLDS)
@pytest.mark.parametrize("name", CASES)
def test_each_rank_decodes_its_tiles_and_rank_0_receives_the_rest(worlds: Worlds, size: int, name: str):
    case, ranks = CASES[name], [rank[name] for rank in worlds[size]]
    decoded = [shared.num_decoded for shared, _ in ranks]
    first, alone = ranks[0]
    assert decoded == first.described["tiles"]
    assert sum(decoded) == case.num_tiles
    if case.vae_tiles:
        assert max(decoded) - min(decoded) <= 1
    assert (alone.num_decoded, alone.described["tiles"]) == (case.num_tiles, [case.num_tiles])
    assert alone.reported == {"communication": {}}  # which the executor leaves out
    received = first.described.get("received bytes on rank 0", {})
    assert {kind: found["bytes"] for kind, found in first.reported.get("communication", {}).items()} == received
    assert bool(received) == (case.vae_tiles and case.num_tiles > 1)


WORDS = (
    "runtime.batch_passes=never",  # as the formula for exchanges has it
    "request.width=128",
    "request.num_frames=17",
    *(f"stages.decode_video.tiling.{name}={value}" for name, value in vars(ALL).items()),
)


@pytest.mark.parametrize(
    ("mesh", "size", "counts", "kinds"),
    [("ulysses", 2, [3, 3], {"ulysses", "gather"}), ("guidance_ulysses", 4, [2, 1, 1, 2], {"guidance"})],
)
def test_the_command_line(
    stored_run: Any, tiny_words: tuple[str, ...], tmp_path: Path, mesh: str, size: int, counts: list[int], kinds: set
):
    words = (*tiny_words, *WORDS, f"parallel={mesh}", f"parallel.num_processes={size}")
    environment = {**os.environ, "PYTHONPATH": str(Path(ltxgen.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = (sys.executable, "-m", "ltxgen", *words, "output.tensors=true", "output.dir=out", "runtime.threads=1")
    job = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert job.returncode == 0, job.stderr
    mine, alone = (load_file(each / "tensors.safetensors") for each in (tmp_path / "out", stored_run(*WORDS)))
    ours, theirs = mine["decode_video.frames"], alone["decode_video.frames"]
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
    assert (mine["frames"].int() - alone["frames"].int()).abs().max() <= 1
    stages = json.loads((tmp_path / "out" / "manifest.json").read_text())["stages"]
    decoding = stages["decode_video"]
    assert (sum(decoding["tiles"]), sorted(decoding["tiles"])) == (6, sorted(counts))
    assert decoding["communication"]["tiles"]["bytes"] == decoding["received bytes on rank 0"]["tiles"]
    assert 0 <= decoding["communication"]["tiles"]["seconds"] <= decoding["seconds"] + 0.001
    assert kinds <= set(stages["base"]["communication"])
    for name in ("base", "refine"):
        a_step = stages[name]["received bytes a step and rank"]
        predicted = {kind: size * len(stages[name]["passes"]) for kind, size in a_step.items()}
        measured = {kind: found["bytes"] for kind, found in stages[name]["communication"].items()}
        if "guidance" not in predicted:
            assert measured == predicted, name
        else:  # predicted for the rank that receives the most, measured on the first
            assert measured.keys() == predicted.keys()
            assert sum(measured.values()) <= sum(predicted.values()), name
    one = json.loads((stored_run(*WORDS) / "manifest.json").read_text())["stages"]
    assert not any("communication" in stage or "received" in " ".join(stage) for stage in one.values())


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((), "; 6 tiles, 3 a rank; tiles 1.6 MiB received on rank 0 source"),
        (("parallel.vae_tiles=false",), "; 6 tiles on rank 0 source"),
    ],
)
def test_the_plan(run_ltxgen: Any, tiny_words: Any, tmp_path: Path, words: tuple[str, ...], text: str):
    parallel = ("parallel=ulysses", "parallel.num_processes=2")
    result = run_ltxgen("plan", *tiny_words, *WORDS, *parallel, *words, cwd=tmp_path)
    assert result.code == 0, result.err
    last_column = [line.split("│")[5].strip() for line in result.out.splitlines() if line.count("│") == 6]
    told = " ".join(last_column)
    assert text in told
    assert told.count("KiB received a step and rank") == 2


def test_a_rank_that_writes_nothing_drains_the_stream():
    """What makes the other ranks decode: the stand-in for `write` takes a stream to its end."""
    taken: list[int] = []
    context = RunContext(Path(os.devnull), NoProgress(), lambda *_: None, lambda *_: None)
    Drop(("frames",)).run({"frames": Stream(map(taken.append, range(3)))}, {}, context)
    assert taken == [0, 1, 2]


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_through_nccl(tmp_path: Path):
    ranks = run_world(decode_all, 2, tmp_path, "cuda")
    for name in CASES:
        check(ranks, name)
        first, _ = ranks[0][name]
        received = first.described.get("received bytes on rank 0", {})
        assert {kind: found["bytes"] for kind, found in first.reported.get("communication", {}).items()} == received
