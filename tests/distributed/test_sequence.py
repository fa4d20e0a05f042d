"""Every mesh against one rank: a tiny random transformer in fp32 on 2 and 4 processes (gloo).

Each world of processes starts once, runs all meshes and cases, and leaves its findings in a file for the tests to read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from worlds import run_world

from ltxgen.attention.sdpa import Sdpa
from ltxgen.config.hardware import Hardware
from ltxgen.diffusion.pair import Pair
from ltxgen.models.transformer import (
    AttentionByRole,
    ModalityInput,
    Perturbation,
    Transformer,
    TransformerConfig,
    TransformerPass,
)
from ltxgen.models.transformer.graphs import CudaRecorder, GraphedPasses
from ltxgen.parallel.axes import Axis, Layout
from ltxgen.parallel.cost import CostModel, Work
from ltxgen.parallel.plan import ParallelPlan, StageParallel
from ltxgen.parallel.sequence import with_tokens
from ltxgen.parallel.shape import Choice, MeshShape
from ltxgen.parallel.tally import Communication
from ltxgen.parallel.traffic import Traffic
from ltxgen.reuse.first_block import FirstBlock, FirstBlockConfig
from ltxgen.reuse.protocol import Prediction

TOLERANCE = 1e-5
SETTINGS = {
    "num_layers": 3,
    "in_channels": 6,
    "out_channels": 6,
    "num_attention_heads": 4,
    "attention_head_dim": 12,
    "cross_attention_dim": 48,
    "audio_in_channels": 4,
    "audio_out_channels": 4,
    "audio_num_attention_heads": 4,
    "audio_attention_head_dim": 8,
    "audio_cross_attention_dim": 32,
    "av_ca_timestep_scale_multiplier": 1000.0,
    "caption_proj_before_connector": True,
    "apply_gated_attention": True,
    "cross_attention_adaln": True,
    "frequencies_precision": "float64",
}
LOCAL = AttentionByRole(*[Sdpa()] * 6)
CONFIG = TransformerConfig.from_metadata({"transformer": SETTINGS})
COST = CostModel(CONFIG, {}, Hardware("none", 1.0, 1.0, 1.0, 1.0, 1.0, 1.0), bytes_per_value=4)
# Where arithmetic takes for ever and exchange nothing, the end of a pass is shared; here also of passes this small.
SHARING = replace(COST, hardware=Hardware("slow", 1.0, 1e-9, 1e-9, 1e6, 1e6, 1e6), batched_tokens=0, launched=False)

PLAIN = Perturbation()
STG = Perturbation(frozenset({1}), frozenset({1}))
ISOLATED = Perturbation(isolate_modalities=True)
BOTH = Pair(True, True)


@dataclass(frozen=True)
class Case:
    """One call of the transformer. Token counts are None for an absent modality."""

    video: int | None = 24
    audio: int | None = 8
    batch: int = 1
    perturbation: Perturbation | tuple[Perturbation, ...] = PLAIN
    per_token: bool = False
    masked: bool = False
    video_enabled: bool = True
    audio_enabled: bool = True


CASES = {
    "divides": Case(),
    "does_not_divide": Case(23, 18),
    "more_audio_than_video": Case(6, 21),
    "shards_of_padding": Case(5, 1),
    "one_token_each": Case(1, 1),
    "per_token_timesteps": Case(23, 18, per_token=True),
    "masks": Case(23, 18, masked=True),
    "masks_that_divide": Case(24, 8, masked=True, per_token=True),
    "masks_and_padding_shards": Case(5, 1, masked=True),
    "stg": Case(23, 18, perturbation=STG),
    "isolated": Case(23, 18, perturbation=ISOLATED),
    "batch": Case(22, 9, batch=2, per_token=True, masked=True),
    "batch_of_passes": Case(22, 9, batch=2, perturbation=(STG, ISOLATED)),
    "no_audio": Case(23, None),
    "no_video": Case(None, 18),
    "video_disabled": Case(23, 18, video_enabled=False),
    "audio_disabled": Case(23, 18, audio_enabled=False),
}
MESHES = {
    2: {"ulysses": MeshShape(ulysses=2), "ring": MeshShape(ring=2)},
    4: {
        "ulysses": MeshShape(ulysses=4),
        "ring": MeshShape(ring=4),
        "usp": MeshShape(ulysses=2, ring=2),
        "guidance_ulysses": MeshShape(guidance=2, ulysses=2),
        "guidance_ring": MeshShape(guidance=2, ring=2),
    },
}


@dataclass(frozen=True)
class GuidancePass:
    context: int
    perturbation: Perturbation = PLAIN
    enabled: Pair[bool] = BOTH


ALL_PASSES = (GuidancePass(0), GuidancePass(1), GuidancePass(0, STG), GuidancePass(0, ISOLATED))
AUDIO_SITS_OUT = tuple(replace(each, enabled=Pair(True, False)) for each in ALL_PASSES)
PASSES = {
    "all": ALL_PASSES,
    "no_stg": (*ALL_PASSES[:2], ALL_PASSES[3]),
    "one": ALL_PASSES[:1],
    "audio_sits_out": AUDIO_SITS_OUT,
}
GUIDED = {
    2: {"guidance": MeshShape(guidance=2)},
    4: {
        "guidance": MeshShape(guidance=4),
        "guidance_ulysses": MeshShape(guidance=2, ulysses=2),
        "guidance_ring": MeshShape(guidance=2, ring=2),
    },
}
WORLDS = (2, 4)


def random_transformer(attention: AttentionByRole) -> Transformer:
    """The same weights wherever it is made, large enough for every part to show in the result."""
    torch.manual_seed(0)
    transformer = Transformer(CONFIG, attention=attention).eval()
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.copy_(
                torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else parameter.shape[-1] ** -0.5)
            )
    return transformer


def random_inputs(case: Case, contexts_seed: int = 0) -> Pair[ModalityInput]:
    generator = torch.Generator().manual_seed(1)
    texts = torch.Generator().manual_seed(2 + contexts_seed)

    def modality(count: int, channels: int, width: int, num_axes: int, enabled: bool) -> ModalityInput:
        draw = torch.randn(case.batch, count, channels, generator=generator)
        starts = (
            torch.rand(case.batch, num_axes, count, 1, generator=generator)
            * torch.tensor([4.0, 500, 500])[:num_axes, None, None]
        )
        sigma = torch.full((case.batch,), 0.7)
        timesteps = torch.rand(case.batch, count, generator=generator) * 0.7 if case.per_token else sigma[:, None]
        mask = None
        if case.masked:
            strengths = torch.tensor([0.0, 0.3, 1.0])
            mask = strengths[torch.randint(3, (case.batch, count, count), generator=generator)]
            mask = torch.maximum(mask, torch.eye(count))  # a token attends at least to itself
        context = torch.randn(case.batch, 7, width, generator=texts)
        bounds = torch.cat([starts, starts + 1], dim=-1)
        return ModalityInput(draw, timesteps, sigma, bounds, context, attention_mask=mask, enabled=enabled)

    return Pair(
        None if case.video is None else modality(case.video, 6, 48, 3, case.video_enabled),
        None if case.audio is None else modality(case.audio, 4, 32, 1, case.audio_enabled),
    )


@dataclass
class Findings:
    """What one rank saw: relative L2 errors, results' bytes, and what it counted against the formula."""

    errors: dict[tuple[str, ...], float]
    results: dict[tuple[str, ...], bytes]
    traffic: dict[tuple[str, ...], tuple[Communication, Traffic]]
    computed: dict[tuple[str, ...], list[tuple[int, int, int]]]  # pass, first block, end
    changes: dict[str, list[float]]


def relative_l2(ours: Pair[Any], theirs: Pair[Any]) -> float:
    """The larger of both modalities'; infinite where one has a result and the other none."""

    def of(one: Tensor | None, other: Tensor | None) -> float:
        if one is None or other is None:
            return 0.0 if one is other else torch.inf
        if one.shape != other.shape or not one.isfinite().all():
            return torch.inf
        return ((one - other).double().norm() / other.double().norm()).item()

    return max(of(ours.video, theirs.video), of(ours.audio, theirs.audio))


def bits(pair: Pair[Any]) -> bytes:
    return b"|".join(b"none" if x is None else x.cpu().numpy().tobytes() for x in (pair.video, pair.audio))


class World:
    """One rank's side of the tests."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.findings = Findings({}, {}, {}, {}, {})
        self.reference = self.transformer(AttentionByRole())

    def transformer(self, attention: AttentionByRole) -> Transformer:
        return random_transformer(attention).to(self.device)

    def inputs(self, case: Case, contexts_seed: int = 0) -> Pair[ModalityInput]:
        def to_device(modality: ModalityInput) -> ModalityInput:
            tensors = {name: x.to(self.device) for name, x in vars(modality).items() if isinstance(x, Tensor)}
            return replace(modality, **tensors)

        return random_inputs(case, contexts_seed).map(to_device)

    def run(self) -> Findings:
        size = dist.get_world_size()
        for name, shape in MESHES[size].items():
            plan = ParallelPlan(Choice(shape), COST)
            transformer = self.transformer(plan.roles(LOCAL))
            stage = plan.stage(4, self.device)
            for case_name, case in CASES.items():
                self.check_case((name, case_name), stage, transformer, case)
            self.check_alone((name, "alone"), transformer)
            self.check_reuse(name, plan, transformer)
            self.check_recorded(name, plan, transformer)
        for name, shape in GUIDED[size].items():
            plan = ParallelPlan(Choice(shape), COST)
            transformer = self.transformer(plan.roles(LOCAL))
            self.check_plan(name, plan, transformer)
            self.check_reuse(name, plan, transformer)
            self.check_recorded(name, plan, transformer)
            sharing, with_tail = ParallelPlan(Choice(shape), SHARING), f"{name}_with_tail"
            self.check_plan(with_tail, sharing, transformer)
            self.check_recorded(with_tail, sharing, transformer)
            stage, masked = sharing.stage(4, self.device), Case(23, 18, masked=True)
            self.check_passes((with_tail, "masked"), stage, transformer, ALL_PASSES, masked)
            with hooked(transformer, dist.get_rank() == 1):
                self.check_passes((with_tail, "hooked"), stage, transformer, ALL_PASSES)
        if size == 4:
            self.check_three()
        return self.findings

    def check_case(self, key: tuple[str, ...], stage: StageParallel, transformer: Transformer, case: Case) -> None:
        inputs = self.inputs(case)
        expected = Pair(*self.reference(inputs.video, inputs.audio, case.perturbation))
        one = TransformerPass(inputs.video, inputs.audio, case.perturbation)
        found = Pair(*stage.wrap(transformer, torch.float32).forward_passes([one])[0])
        self.note(key, found, expected)

    def check_alone(self, key: tuple[str, ...], transformer: Transformer) -> None:
        """A transformer with the roles of a mesh, called without its wrapper."""
        inputs = self.inputs(Case(23, 18))
        expected = Pair(*self.reference(inputs.video, inputs.audio))
        self.note(key, Pair(*transformer(inputs.video, inputs.audio)), expected)

    def check_plan(self, name: str, plan: ParallelPlan, transformer: Transformer) -> None:
        for passes_name, passes in PASSES.items():
            for num_passes in (4, 1):  # the guided stage, and the refining one that all ranks share
                key = (name, f"{passes_name}_in_stage_of_{num_passes}")
                # One by one, as the formula for traffic has it, and as one batch. A shared tail may be as small as one.
                transformer.batched_tokens = 24 // dist.get_world_size() if num_passes == 4 else None
                stage = plan.stage(num_passes, self.device)
                self.check_passes(key, stage, transformer, passes)
                if num_passes == len(passes) and passes_name != "audio_sits_out":
                    predicted = plan.traffic(Work([passes], Pair(23, 18)))
                    self.findings.traffic[key] = (stage.communication, predicted)

    def check_passes(
        self,
        key: tuple[str, ...],
        stage: StageParallel,
        transformer: Transformer,
        passes: tuple[GuidancePass, ...],
        case: Case = Case(23, 18, per_token=True),
    ) -> None:
        inputs = self.step(passes, case)
        kinds = [(each.context_key, each.samples) for each in inputs]
        wrapped = stage.wrap(transformer, torch.float32)
        with running(transformer) as ran:
            results = wrapped.forward_passes(inputs)
        self.findings.computed[key] = [
            (kinds.index((each.context_key, each.samples)), blocks.start, blocks.stop) for each, blocks in ran
        ]
        self.findings.errors[(*key, "count")] = float(len(results) - len(passes))
        for number, each in enumerate(inputs):
            expected = Pair(*self.reference(each.video, each.audio, each.perturbation))
            self.note((*key, str(number)), Pair(*results[number]), expected)

    def step(self, passes: Sequence[GuidancePass], case: Case, scale: float = 1.0) -> list[TransformerPass]:
        """What the transformer is given for `passes`: the same tokens for all, and one of two texts each."""
        tokens = self.inputs(case).map(lambda each: replace(each, latents=each.latents * scale))
        texts = [self.inputs(case, contexts_seed=seed) for seed in range(2)]

        def inputs(each: GuidancePass) -> TransformerPass:
            def with_text(modality: ModalityInput, text: ModalityInput, enabled: bool) -> ModalityInput:
                return replace(modality, context=text.context, enabled=enabled)

            both = tokens.map(with_text, texts[each.context], each.enabled)
            return TransformerPass(both.video, both.audio, each.perturbation)

        return list(map(inputs, passes))

    def check_recorded(self, name: str, plan: ParallelPlan, transformer: Transformer) -> None:
        """Steps of which the second is recorded: as a CUDA graph, or on a CPU as what is done again."""
        transformer.batched_tokens = 0  # as the formula for traffic has it
        stage = plan.stage(4, self.device)
        recorder = CudaRecorder() if self.device == "cuda" else lambda run: run
        wrapped = GraphedPasses(stage.wrap(transformer, torch.float32), 100, stage.counted(recorder))
        first = self.step(ALL_PASSES, Case(23, 18))
        for step, sigma in enumerate((0.7, 0.5, 0.2)):
            inputs = at_level(first, sigma)
            found = wrapped.forward_passes(inputs)
            for number, each in enumerate(inputs):
                expected = Pair(*self.reference(each.video, each.audio, each.perturbation))
                self.note((name, "recorded", str(step), str(number)), Pair(*found[number]), expected)
        once = plan.traffic(Work([ALL_PASSES], Pair(23, 18)))
        thrice = Traffic(**{kind: 3 * size for kind, size in vars(once).items()})
        self.findings.traffic[name, "recorded"] = (stage.communication, thrice)
        transformer.batched_tokens = None

    def check_reuse(self, name: str, plan: ParallelPlan, transformer: Transformer) -> None:
        """Steps that go without the other blocks or don't, as one rank decides it; three passes deal unevenly."""
        alone = ParallelPlan(Choice(MeshShape()), COST).stage(4, self.device, all_predict=True)
        stage = plan.stage(4, self.device, all_predict=True)
        changes, wanted = self.reusing(alone, self.reference)
        self.findings.changes[name], found = self.reusing(stage, transformer)
        assert changes == pytest.approx(self.findings.changes[name], rel=1e-4)
        for step, results in enumerate(found):
            for number, result in enumerate(results):
                self.note((name, "reuse", str(step), str(number)), result, wanted[step][number])

    def reusing(self, stage: StageParallel, transformer: Transformer) -> tuple[list[float], list[list[Pair[Tensor]]]]:
        """The changes between three steps, the second of which is close to the first, and their results."""
        reuse: FirstBlock = FirstBlockConfig(0.0, 1.0, threshold=0.5).build([0] * 3)
        wrapped = stage.wrap(reuse.wrap(transformer, stage), torch.float32)
        found: list[list[Pair[Tensor]]] = []
        first = self.step(PASSES["no_stg"], Case(23, 18))
        for step, noise in enumerate((0.0, 0.01, 3.0)):
            inputs = at_level(first, 1.0, noise)

            def evaluate(inputs: list[TransformerPass] = inputs) -> Prediction:
                found.append([Pair(*velocities) for velocities in wrapped.forward_passes(inputs)])
                return Prediction(Pair(None, None), BOTH)

            reuse.predict(step, 0.5, evaluate)
        assert (reuse.facts["all blocks"], reuse.facts["first blocks alone"]) == (2, 1), reuse.facts
        return reuse.changes, found

    def check_three(self) -> None:
        """Three of the four ranks: passes that deal unevenly, a ring of odd length."""
        group = dist.new_group([0, 1, 2])
        if dist.get_rank() == 3:
            return
        axis = Axis(3, dist.get_rank(), group)
        plan = ParallelPlan(Choice(MeshShape(ring=3)), COST)
        transformer = self.transformer(plan.roles(LOCAL))
        ring = StageParallel(Layout(ring=axis), plan.sequence, COST, MeshShape(ring=3))
        for case_name, case in CASES.items():
            self.check_case(("ring_of_3", case_name), ring, transformer, case)
        guidance = StageParallel(Layout(guidance=axis), plan.sequence, COST, MeshShape(guidance=3))
        for passes_name, passes in PASSES.items():
            self.check_passes(("guidance_of_3", passes_name), guidance, transformer, passes)

    def note(self, key: tuple[str, ...], found: Pair[Any], expected: Pair[Any]) -> None:
        self.findings.errors[key] = relative_l2(found, expected)
        self.findings.results[key] = bits(found)


def at_level(passes: Sequence[TransformerPass], sigma: float, noise: float = 0.0) -> list[TransformerPass]:
    """The same passes over other latents at another level, with contexts, positions and masks that stay."""

    def changed(modality: ModalityInput) -> ModalityInput:
        latents = (modality.latents.roll(1, 1) * noise + modality.latents) * sigma
        return replace(modality, latents=latents, sigma=modality.sigma * sigma)

    tokens = Pair(passes[0].video, passes[0].audio).map(changed)
    return [with_tokens(tokens, each) for each in passes]


@contextmanager
def hooked(transformer: Transformer, really: bool) -> Iterator[None]:
    """As where weights come for each call."""
    handle = transformer.transformer_blocks[0].register_forward_pre_hook(lambda block, args: None) if really else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


@contextmanager
def running(transformer: Transformer) -> Iterator[list[tuple[TransformerPass, range]]]:
    """Every pass that the transformer runs in the block, and which blocks of it."""
    ran: list[tuple[TransformerPass, range]] = []
    run_passes = transformer.run_passes

    def recorded(hidden: Any, inputs: Any, passes: Any, blocks: Any = None, shortcut: Any = None) -> Any:
        ran.extend(zip(passes, blocks or [range(CONFIG.num_layers)] * len(passes), strict=True))
        return run_passes(hidden, inputs, passes, blocks, shortcut)

    transformer.run_passes = recorded  # type: ignore[method-assign]
    try:
        yield ran
    finally:
        del transformer.run_passes


def findings_of_rank(device: str) -> Findings:
    return World(device).run()


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Findings]]:
    """The findings of each rank, by the number of ranks."""
    return {size: run_world(findings_of_rank, size, tmp_path_factory.mktemp("world")) for size in WORLDS}


def meshes() -> Iterator[tuple[int, str, str]]:
    for size in WORLDS:
        yield from ((size, name, case) for name in MESHES[size] for case in (*CASES, "alone"))
    yield from ((4, "ring_of_3", case) for case in CASES)


@pytest.mark.parametrize(("size", "mesh", "case"), list(meshes()))
def test_a_mesh_gives_the_velocities_of_one_rank(worlds: Any, size: int, mesh: str, case: str):
    ranks = worlds[size][: 3 if mesh == "ring_of_3" else size]
    assert max(rank.errors[mesh, case] for rank in ranks) <= TOLERANCE
    assert len({rank.results[mesh, case] for rank in ranks}) == 1, "ranks differ"


@pytest.mark.parametrize(("size", "mesh"), [(size, name) for size in WORLDS for name in (*MESHES[size], *GUIDED[size])])
def test_ranks_reuse_what_one_rank_does(worlds: Any, size: int, mesh: str):
    ranks = worlds[size]
    assert len({tuple(rank.changes[mesh]) for rank in ranks}) == 1, "ranks differ"
    keys = [key for key in ranks[0].errors if key[:2] == (mesh, "reuse")]
    assert len(keys) == 9
    for key in keys:
        assert max(rank.errors[key] for rank in ranks) <= TOLERANCE, key
        assert len({rank.results[key] for rank in ranks}) == 1, "ranks differ"


def recorded() -> Iterator[tuple[int, str]]:
    for size in WORLDS:
        yield from ((size, name) for name in (*MESHES[size], *guided_meshes(size)))


def guided_meshes(size: int) -> Iterator[str]:
    for name in GUIDED[size]:
        yield from (name, f"{name}_with_tail")


@pytest.mark.parametrize(("size", "mesh"), list(recorded()))
def test_recorded_steps_give_the_velocities_of_one_rank(worlds: Any, size: int, mesh: str):
    keys = [key for key in worlds[size][0].errors if key[:2] == (mesh, "recorded")]
    assert len(keys) == 3 * len(ALL_PASSES)
    for key in keys:
        assert max(rank.errors[key] for rank in worlds[size]) <= TOLERANCE
        assert len({rank.results[key] for rank in worlds[size]}) == 1, "ranks differ"


def guided() -> Iterator[tuple[int, str, str]]:
    for size in WORLDS:
        for name in guided_meshes(size):
            yield from ((size, name, f"{passes}_in_stage_of_{count}") for passes in PASSES for count in (4, 1))
        yield from ((size, f"{name}_with_tail", case) for name in GUIDED[size] for case in ("masked", "hooked"))
    yield from ((4, "guidance_of_3", passes) for passes in PASSES)


@pytest.mark.parametrize(("size", "mesh", "case"), list(guided()))
def test_all_ranks_have_all_passes_in_order(worlds: Any, size: int, mesh: str, case: str):
    ranks = worlds[size][: 3 if mesh == "guidance_of_3" else size]
    num_passes = len(PASSES.get(case.split("_in_stage")[0], ALL_PASSES))
    assert all(rank.errors[mesh, case, "count"] == 0 for rank in ranks)
    for number in map(str, range(num_passes)):
        assert max(rank.errors[mesh, case, number] for rank in ranks) <= TOLERANCE
        assert len({rank.results[mesh, case, number] for rank in ranks}) == 1, "ranks differ"


@pytest.mark.parametrize(
    ("size", "mesh", "case", "dealt"),
    [
        (2, "guidance", "all_in_stage_of_4", [[0, 2], [1, 3]]),
        (2, "guidance", "no_stg_in_stage_of_4", [[0, 2], [1]]),
        (2, "guidance", "one_in_stage_of_1", [[0], [0]]),
        (2, "guidance_with_tail", "hooked", [[0, 2], [1, 3]]),
        (4, "guidance", "all_in_stage_of_4", [[0], [1], [2], [3]]),
        (4, "guidance", "no_stg_in_stage_of_4", [[0], [1], [2], []]),
        (4, "guidance_of_3", "all", [[0, 2], [1], [3]]),
        (4, "guidance_ulysses", "all_in_stage_of_4", [[0, 2], [0, 2], [1, 3], [1, 3]]),
    ],
)
def test_each_rank_computes_its_passes_only(worlds: Any, size: int, mesh: str, case: str, dealt: list[list[int]]):
    every = [[(number, 0, CONFIG.num_layers) for number in numbers] for numbers in dealt]
    assert [rank.computed[mesh, case] for rank in worlds[size][: len(dealt)]] == every


@pytest.mark.parametrize(
    ("size", "mesh", "case", "before", "tail"),
    [
        (2, "guidance_with_tail", "all_in_stage_of_4", [[(0, 3), (2, 3)], [(1, 3), (3, 2)]], (3, 2)),
        (2, "guidance_with_tail", "one_in_stage_of_4", [[(0, 0)], []], (0, 0)),
    ],
)
def test_what_one_rank_has_too_much_all_share(
    worlds: Any, size: int, mesh: str, case: str, before: list[list[tuple[int, int]]], tail: tuple[int, int]
):
    number, block = tail
    for rank, own in zip(worlds[size], before, strict=True):
        ended = [(each, 0, end) for each, end in own]
        assert rank.computed[mesh, case] == [*ended, (number, block, CONFIG.num_layers)]


@pytest.mark.parametrize("size", WORLDS)
def test_what_is_counted_is_what_the_formula_says(worlds: Any, size: int):
    """Every byte that arrives, padding included, by kind of exchange, on the rank that receives the most."""
    for key, (_, predicted) in worlds[size][0].traffic.items():
        counted = [{kind: found["bytes"] for kind, found in rank.traffic[key][0].items()} for rank in worlds[size]]
        assert max(counted, key=lambda kinds: sum(kinds.values())) == predicted.by_kind, key
        assert predicted.total > 0, key


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_through_nccl(tmp_path: Path):
    ranks = run_world(findings_of_rank, 2, tmp_path, "cuda")
    for key in ranks[0].errors:
        assert max(rank.errors[key] for rank in ranks) <= TOLERANCE, key
    for key in ranks[0].results:
        assert len({rank.results[key] for rank in ranks}) == 1, key
