"""Sharded weights against whole ones: two-stage runs of the embedded model on 2, 3 and 4 processes (gloo), in fp32.

Each world of processes starts once, makes its runs one after another, and leaves its findings in files.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import socket
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from safetensors.torch import load_file
from torch import Tensor, nn

from ltxgen.artifacts.artifact import ArtifactSpec, ResolvedArtifact
from ltxgen.artifacts.components import BuildOptions
from ltxgen.artifacts.fusion import FusedLoras
from ltxgen.artifacts.load import load_component, tensor_reader
from ltxgen.artifacts.resolver import Places, resolve_all
from ltxgen.config import compose
from ltxgen.models.blocks import BLOCKS
from ltxgen.models.transformer import ModalityInput
from ltxgen.models.transformer.block import Batch
from ltxgen.models.transformer.inputs import Hidden
from ltxgen.models.transformer.perturbation import BlockPerturbation
from ltxgen.parallel.weights import rows_of_rank, sharded_size
from ltxgen.recipe.launch import run_config

TOLERANCE = 1e-5
SECONDS = 100  # for a world; ranks that wait for each other would never end
# What differs between stages is fused and taken out; some steps have fewer passes than the first, and one has none.
WORDS = (
    "runtime.dtype=float32",
    "runtime.threads=1",
    "stages.base.steps=3",
    "+stages.base.loras.distilled=0.25",
    "stages.base.guidance.video.skip_step=2",
    "stages.base.guidance.audio.skip_step=1",
    "stages.base.guidance.audio.stg_scale=0",
)
PASSES = [4, 0, 3]
# The last step of a stage leaves out blocks, of which one was gathered ahead; the next stage changes it.
REUSE = (
    "reuse@stages.base.reuse=first_block",
    "stages.base.reuse.threshold=1e9",
    "stages.base.reuse.start=0",
    "stages.base.reuse.end=1",
    "stages.base.guidance.video.skip_step=0",
    "stages.base.guidance.audio.skip_step=0",
)
RUNS = {
    2: {
        "guidance": ("parallel=guidance",),
        "ulysses": ("parallel=ulysses",),
        "reuse": ("parallel=guidance", *REUSE),
    },
    3: {"guidance": ("parallel=guidance",)},
    4: {"guidance_ulysses": ("parallel=guidance_ulysses",), "guidance": ("parallel=guidance",)},
}
PARTS_ON = 4  # ranks; nine rows of a table are three for each but the last, which has none


# Ranks fork from a process that has imported these.
PRELOAD = [
    "accelerate",
    "ltxgen.models.text_encoder.gemma",
    "ltxgen.models.text_encoder.tokenizer",
    "ltxgen.models.vocoder",
    "ltxgen.parallel.fsdp",
    "ltxgen.recipe.launch",
]


@dataclass
class Findings:
    """What a rank saw of the weights themselves."""

    sizes: dict[str, int] = field(default_factory=dict)  # bytes held
    wrong_rows: list[str] = field(default_factory=list)  # keys whose rows are not the whole tensor's
    fused_errors: list[float] = field(default_factory=list)
    wrong_after: list[str] = field(default_factory=list)  # keys that a LoRA left changed
    block_errors: list[float] = field(default_factory=list)
    gathers: list[int] = field(default_factory=list)
    whole_blocks: list[int] = field(default_factory=list)
    freed: bool = False


def embedded() -> Mapping[str, ResolvedArtifact]:
    names = ("checkpoint", "distilled_lora", "text_encoder")
    return resolve_all([ArtifactSpec(name, source="embedded") for name in names], Places()).artifacts


class Weights:
    """One rank's look at the components of the embedded model, whole and sharded."""

    def __init__(self) -> None:
        from ltxgen.parallel.fsdp import ShardedWeights

        self.placement = ShardedWeights(dist.get_world_size(), "cpu")
        self.artifacts = embedded()
        self.findings = Findings()

    def look(self) -> Findings:
        for name, artifact in (("transformer", "checkpoint"), ("text_encoder", "text_encoder")):
            whole = load_component(name, self.artifacts[artifact], "cpu", torch.float32)
            sharded = load_component(name, self.artifacts[artifact], "cpu", torch.float32, placement=self.placement)
            self.findings.wrong_rows += self.other_rows(whole, sharded)
            self.findings.sizes[name] = sum(
                self.placement.local(tensor).nbytes for tensor in sharded.state_dict().values()
            )
            if name == "transformer":
                self.look_at_loras(whole, sharded)
                self.look_at_blocks(whole, sharded)
            alive = weakref.ref(sharded)
            del sharded
            self.placement.released([name])
        self.findings.freed = alive() is None
        return self.findings

    def other_rows(self, whole: nn.Module, sharded: nn.Module) -> list[str]:
        """Keys of tensors of which `sharded` holds something else than its rows of `whole`."""
        expected = whole.state_dict()
        return [
            key
            for key, tensor in sharded.state_dict().items()
            if not torch.equal(self.placement.local(tensor), expected[key][self.placement.rows(tensor)])
        ]

    def look_at_loras(self, whole: nn.Module, sharded: nn.Module) -> None:
        lora, checkpoint = self.artifacts["distilled_lora"], self.artifacts["checkpoint"]

        def reload() -> Any:
            return tensor_reader("transformer", checkpoint, torch.float32)

        fused = [
            FusedLoras(whole, keep_original="cpu"),
            FusedLoras(sharded, keep_original=None, reload=reload, placement=self.placement),
        ]
        for strength in (0.5, 1.25):
            names = [each.apply([(lora, strength)]).modules for each in fused]
            assert names[0] == names[1] != ()
            for name in names[0]:
                ours, theirs = (module.get_parameter(f"{name}.weight") for module in (sharded, whole))
                expected = theirs[self.placement.rows(ours)]
                if len(expected):
                    self.findings.fused_errors.append(relative_l2(self.placement.local(ours), expected))
        for each in fused:
            each.apply([])
        self.findings.wrong_after += self.other_rows(whole, sharded)

    @torch.inference_mode()
    def look_at_blocks(self, whole: Any, sharded: Any) -> None:
        """Blocks called by hand, each for three passes at once, twice over."""
        video, audio = random_inputs()
        start, inputs = whole.embed(video, audio)
        texts = (whole.embed_texts(video, audio),)

        def batches(hidden: Sequence[Hidden]) -> list[Batch]:
            return [Batch(each, texts, BlockPerturbation()) for each in hidden]

        for _ in range(2):
            expected, found = [start] * 3, [start] * 3
            with counted_gathers() as gathers:
                for block, sharded_block in zip(whole.transformer_blocks, sharded.transformer_blocks, strict=True):
                    expected = block(batches(expected), inputs)
                    found = sharded_block(batches(found), inputs)
                    self.findings.whole_blocks.append(self.num_whole(sharded))
            self.findings.gathers.append(len(gathers))
            self.findings.block_errors += [
                relative_l2(ours, theirs)
                for one, other in zip(found, expected, strict=True)
                for ours, theirs in zip(one, other, strict=True)
            ]

    def num_whole(self, module: nn.Module) -> int:
        blocks = module.get_submodule("transformer_blocks").children()
        return sum(all(self.placement.local(each) is each for each in block.parameters()) for block in blocks)


def random_inputs() -> tuple[ModalityInput, ModalityInput]:
    """Video and audio of the embedded model's widths."""
    generator = torch.Generator().manual_seed(0)

    def modality(num_tokens: int, num_axes: int, text_width: int) -> ModalityInput:
        starts = torch.rand(1, num_axes, num_tokens, 1, generator=generator)
        return ModalityInput(
            latents=torch.randn(1, num_tokens, 128, generator=generator),
            timesteps=torch.full((1, 1), 0.7),
            sigma=torch.full((1,), 0.7),
            positions=torch.cat([starts, starts + 1], dim=-1),
            context=torch.randn(1, 5, text_width, generator=generator),
        )

    return modality(6, 3, 128), modality(4, 1, 64)


@contextmanager
def counted_gathers() -> Iterator[list[None]]:
    """One entry for each block that is gathered."""
    name = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
    gather: Callable[..., Any] = getattr(dist, name)
    counted: list[None] = []

    def counting(*arguments: Any, **options: Any) -> Any:
        counted.append(None)
        return gather(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, name, counting)
        yield counted


def relative_l2(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape or not ours.isfinite().all():
        return torch.inf
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()


def run_rank(rank: int, size: int, port: int, configs: Sequence[dict[str, Any]], folder: str) -> None:
    if configs[0]["runtime"]["device"] == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # ranks take a GPU each where there are any
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(size))
    os.environ.update(LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size))
    for config in configs:
        run_config(config)
    if size == PARTS_ON:
        gc.disable()  # what is freed here is freed by the placement
        (Path(folder) / str(rank)).write_bytes(pickle.dumps(Weights().look()))
    dist.barrier()


def run_world(size: int, configs: Sequence[dict[str, Any]], folder: Path) -> None:
    """All `configs` on ranks of `size` processes; the ranks' findings are left in `folder`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.set_forkserver_preload(PRELOAD)
    ranks = torch.multiprocessing.start_processes(
        run_rank, (size, port, configs, str(folder)), nprocs=size, start_method="forkserver", join=False
    )
    deadline = time.monotonic() + SECONDS
    try:
        while not ranks.join(timeout=1):
            assert time.monotonic() < deadline, "ranks wait for each other"
    finally:
        for process in ranks.processes:
            process.kill()


def sharded_config(output: Path, *words: str) -> dict[str, Any]:
    return compose.compose_config([*words, "parallel.weights=sharded", "output.tensors=true", f"output.dir={output}"])


@dataclass(frozen=True)
class Worlds:
    """The folder of each run, by ranks and name, and what each rank found of the weights."""

    runs: dict[tuple[int, str], Path]
    findings: list[Findings]


@pytest.fixture(scope="module")
def worlds(tiny_words: tuple[str, ...], tiny_set: Any, offline: None, tmp_path_factory: Any) -> Worlds:
    runs: dict[tuple[int, str], Path] = {}
    for size, named in RUNS.items():
        folder = tmp_path_factory.mktemp(f"world_of_{size}")
        runs |= {(size, name): folder / name for name in named}
        words = (*tiny_words, *WORDS, "runtime.device=cpu")
        run_world(size, [sharded_config(folder / name, *words, *mesh) for name, mesh in named.items()], folder)
    return Worlds(runs, [pickle.loads((folder / str(rank)).read_bytes()) for rank in range(PARTS_ON)])


@pytest.mark.parametrize(("size", "name"), [(size, name) for size, named in RUNS.items() for name in named])
def test_two_stages_give_what_one_process_gives(worlds: Worlds, stored_run: Any, size: int, name: str):
    words = (*WORDS, *REUSE) if name == "reuse" else WORDS
    check_run(worlds.runs[size, name], stored_run(*words, "runtime.device=cpu"))


def check_run(sharded: Path, alone: Path) -> None:
    """The same noise, and everything else the same but for rounding."""
    mine, theirs = (load_file(folder / "tensors.safetensors") for folder in (sharded, alone))
    assert mine.keys() == theirs.keys()
    noise = [key for key in mine if ".noise." in key]
    assert len(noise) == 4
    assert all(torch.equal(mine[key], theirs[key]) for key in noise)
    for key in mine:
        if mine[key].is_floating_point():
            assert relative_l2(mine[key], theirs[key]) <= TOLERANCE, key
    assert {"base.final.video", "refine.final.video", "refine.final.audio", "audio.waveform"} <= mine.keys()


def test_steps_deal_unevenly(run_ltxgen: Any, tiny_words: tuple[str, ...], tmp_path: Path):
    result = run_ltxgen("plan", *tiny_words, *WORDS, cwd=tmp_path)
    assert str(PASSES) in " ".join(result.out.split())


def test_a_rank_holds_its_rows_and_no_more(worlds: Worlds):
    artifacts = embedded()
    for name, artifact in (("transformer", "checkpoint"), ("text_encoder", "text_encoder")):
        whole = load_component(name, artifacts[artifact], "cpu", torch.float32, BuildOptions())
        shapes = {key: tuple(tensor.shape) for key, tensor in whole.state_dict().items()}
        size = sharded_size(name, shapes, 4, PARTS_ON)
        assert size.whole == sum(tensor.nbytes for tensor in whole.state_dict().values())
        assert max(found.sizes[name] for found in worlds.findings) == size.held
        blocks = {key: shape for key, shape in shapes.items() if key.startswith(BLOCKS[name])}
        assert sharded_size(name, blocks, 4, PARTS_ON).held < 1.01 * sharded_size(name, blocks, 4, 1).held / PARTS_ON
    assert [found.wrong_rows for found in worlds.findings] == [[]] * PARTS_ON
    assert all(found.freed for found in worlds.findings)


def test_loras_are_fused_into_rows_and_taken_out(worlds: Worlds):
    for found in worlds.findings:
        assert len(found.fused_errors) > 100
        assert max(found.fused_errors) <= 1e-6
        assert found.wrong_after == []


def test_blocks_called_by_hand(worlds: Worlds):
    for found in worlds.findings:
        assert max(found.block_errors) <= TOLERANCE
        assert found.gathers == [4, 4]  # each block once for three passes
        assert max(found.whole_blocks) == 0, "a block is freed when it has been called"


@pytest.mark.parametrize(
    ("num_rows", "num_ranks", "lengths"),
    [(8, 4, [2, 2, 2, 2]), (9, 4, [3, 3, 3, 0]), (1, 2, [1, 0]), (5, 3, [2, 2, 1]), (0, 2, [0, 0])],
)
def test_rows_are_cut_as_torch_chunks(num_rows: int, num_ranks: int, lengths: list[int]):
    parts = [rows_of_rank(num_rows, num_ranks, rank) for rank in range(num_ranks)]
    assert [part.stop - part.start for part in parts] == lengths
    assert torch.equal(torch.cat([torch.arange(num_rows)[part] for part in parts]), torch.arange(num_rows))
    assert [len(chunk) for chunk in torch.arange(num_rows).chunk(num_ranks)] == [
        n for n in lengths if n
    ] or not num_rows


def test_what_is_refused_and_what_the_plan_says(run_ltxgen: Any, tiny_words: tuple[str, ...], tmp_path: Path):
    words = ("plan", *tiny_words, "parallel=ulysses", "parallel.weights=sharded")
    alone = run_ltxgen(*words, cwd=tmp_path)
    assert alone.code == 2
    assert "parallel.weights = sharded: needs several processes to share them; set parallel.num_processes" in alone.err
    shared = run_ltxgen(*words, "parallel.num_processes=4", cwd=tmp_path)
    assert shared.code == 0
    lines = [line for line in shared.out.splitlines() if line.startswith("weights of the ")]
    assert [line.split(":")[0] for line in lines] == [
        f"weights of the {name} sharded over 4 ranks" for name in ("text_encoder", "transformer")
    ]


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_through_nccl(stored_run: Any, tiny_words: tuple[str, ...], tmp_path: Path):
    words = (*tiny_words, *WORDS, "runtime.device=cuda")
    meshes = RUNS[2]
    run_world(2, [sharded_config(tmp_path / name, *words, *mesh) for name, mesh in meshes.items()], tmp_path)
    for name in meshes:
        words = (*WORDS, *REUSE) if name == "reuse" else WORDS
        check_run(tmp_path / name, stored_run(*words, "runtime.device=cuda"))
