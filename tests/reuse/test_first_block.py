"""First blocks alone against blocks called by hand, on tiny random weights in fp32."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from math import inf

import pytest
import torch
from torch import Tensor

from ltxgen.config.hardware import Hardware
from ltxgen.config.schema import parse
from ltxgen.diffusion.pair import Pair
from ltxgen.models.transformer import (
    Hidden,
    ModalityInput,
    Perturbation,
    Transformer,
    TransformerConfig,
    TransformerPass,
    Velocities,
)
from ltxgen.parallel.cost import CostModel
from ltxgen.parallel.plan import ParallelPlan
from ltxgen.parallel.shape import Choice, MeshShape
from ltxgen.registry import config_of
from ltxgen.reuse.first_block import FirstBlock, FirstBlockConfig
from ltxgen.reuse.protocol import Prediction

SETTINGS = {
    "num_layers": 4,
    "in_channels": 6,
    "out_channels": 6,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "cross_attention_dim": 24,
    "audio_in_channels": 4,
    "audio_out_channels": 4,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 8,
    "audio_cross_attention_dim": 16,
    "caption_proj_before_connector": True,
    "apply_gated_attention": True,
    "cross_attention_adaln": True,
}
CONFIG = TransformerConfig.from_metadata({"transformer": SETTINGS})
ALWAYS = 1e9  # a threshold above any change
PLAIN = Perturbation()
STG = Perturbation(frozenset({2}), frozenset({2}))
ISOLATED = Perturbation(isolate_modalities=True)
GUIDED = [(0, PLAIN), (1, PLAIN), (0, STG), (0, ISOLATED)]  # which of two texts, perturbation
ALONE, TOGETHER = 0, 1000  # batched_tokens
COST = CostModel(CONFIG, {}, Hardware("none", 1.0, 1.0, 1.0, 1.0, 1.0, 1.0))
RANKS = ParallelPlan(Choice(MeshShape()), COST).stage(4, "cpu")


@pytest.fixture(params=[ALONE, TOGETHER], ids=["one by one", "as a batch"])
def transformer(request: pytest.FixtureRequest) -> Transformer:
    return random_transformer(request.param)


def random_transformer(batched_tokens: int) -> Transformer:
    torch.manual_seed(0)
    transformer = Transformer(CONFIG, batched_tokens=batched_tokens).eval().requires_grad_(False)
    for parameter in transformer.parameters():
        parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else parameter.shape[-1] ** -0.5))
    return transformer


class Steps:
    """The passes of successive steps: latents and sigma change, texts and positions are the same tensors."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(1)
        self.texts = [(self.randn(1, 5, 24), self.randn(1, 5, 16)) for _ in range(2)]
        self.places = [torch.rand(1, axes, tokens, 2, generator=self.generator) for axes, tokens in ((3, 9), (1, 5))]

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def next(self, sigma: float, audio_enabled: bool = True) -> list[TransformerPass]:
        level = torch.full((1,), sigma)
        latents = self.randn(1, 9, 6), self.randn(1, 5, 4)

        def modality(number: int, latents: Tensor) -> ModalityInput:
            enabled = number == 0 or audio_enabled
            places, text = self.places[number], self.texts[0][number]
            return ModalityInput(latents, level[:, None], level, places, text, enabled=enabled)

        both = [modality(number, latents[number]) for number in range(2)]

        def with_text(text: int) -> tuple[ModalityInput, ...]:
            return tuple(replace(each, context=own) for each, own in zip(both, self.texts[text], strict=True))

        return [TransformerPass(*with_text(text), left) for text, left in GUIDED]


Predict = Callable[[list[TransformerPass]], list[Velocities]]


def wrapped(transformer: Transformer, count: int = 8, **fields: float) -> tuple[FirstBlock, Predict]:
    """Evaluations as a stage makes them, of which the velocities are seen."""
    reuse = FirstBlockConfig(**{"start": 0.0, "end": 1.0, **fields}).build([0] * count)
    model, numbers = reuse.wrap(transformer, RANKS), itertools.count()

    def predict(passes: list[TransformerPass]) -> list[Velocities]:
        found = []

        def evaluate() -> Prediction:
            found.extend(model.forward_passes(passes) if passes else [])
            return Prediction(Pair(None, None), Pair(True, True))

        reuse.predict(next(numbers), 0.5, evaluate)
        return found

    return reuse, predict


def equal(one: list[Velocities], other: list[Velocities]) -> bool:
    pairs = [pair for ours, theirs in zip(one, other, strict=True) for pair in zip(ours, theirs, strict=True)]
    return all((x is None and y is None) or torch.equal(x, y) for x, y in pairs)


def test_its_yaml():
    problems = []
    assert parse(config_of("reuse", "first_block"), {}, "reuse", problems) == FirstBlockConfig()
    parse(config_of("reuse", "first_block"), {"threshold": -1, "max_skips": 0, "blocks": 0}, "reuse", problems)
    assert [problem.path for problem in problems] == ["reuse.threshold", "reuse.max_skips", "reuse.blocks"]
    (too_many,) = FirstBlockConfig(blocks=4).problems("stages.base.reuse", 4)
    assert str(too_many) == "stages.base.reuse.blocks = 4: must be less than 4, the blocks of this transformer"
    assert FirstBlockConfig(blocks=3).problems("stages.base.reuse", 4) == []


@pytest.mark.parametrize("blocks", [1, 3])  # before and after stg parts from text
@torch.inference_mode()
def test_a_threshold_of_0_is_bit_for_bit_the_transformer(transformer: Transformer, blocks: int):
    reuse, predict = wrapped(transformer, threshold=0.0, blocks=blocks)
    steps = Steps()
    passes = steps.next(0.9)
    for each in (passes, passes, steps.next(0.7)):  # the same again changes nothing, and nothing isn't below 0
        assert equal(predict(each), transformer.forward_passes(each))
    assert (reuse.facts["all blocks"], reuse.facts["first blocks alone"]) == (3, 0)
    assert reuse.facts["changes"][0] == 0


def by_hand(
    transformer: Transformer, each: TransformerPass, blocks: int, others: Hidden | None
) -> tuple[Velocities, Hidden, Hidden]:
    """One pass: its velocities, what the first blocks added and what the others did, or with `others` that instead."""
    hidden, inputs = transformer.embed(each.video, each.audio)
    texts = [transformer.embed_texts(each.video, each.audio)]
    kept = transformer.transformer_blocks

    def run(part: range, hidden: Hidden) -> Hidden:
        perturbation = Perturbation(
            frozenset(block - part.start for block in each.perturbation.skip_video_self_attention if block in part),
            frozenset(block - part.start for block in each.perturbation.skip_audio_self_attention if block in part),
            each.perturbation.isolate_modalities,
        )
        transformer.transformer_blocks = kept[part.start : part.stop]
        transformer.config = replace(CONFIG, num_layers=len(part))
        try:
            return transformer.run_blocks(hidden, inputs, texts, [(perturbation,)])[0]
        finally:
            transformer.transformer_blocks, transformer.config = kept, CONFIG

    begun = run(range(blocks), hidden)
    end = run(range(blocks, CONFIG.num_layers), begun) if others is None else Hidden(*map(torch.add, begun, others))
    return transformer.head(end, inputs), Hidden(*map(torch.sub, begun, hidden)), Hidden(*map(torch.sub, end, begun))


@pytest.mark.parametrize("blocks", [1, 3])
@torch.inference_mode()
def test_a_skipped_evaluation_by_hand(transformer: Transformer, blocks: int):
    reuse, predict = wrapped(transformer, threshold=ALWAYS, blocks=blocks)
    steps = Steps()
    one, two, three = steps.next(0.9), steps.next(0.8), steps.next(0.7)
    assert equal(predict(one), transformer.forward_passes(one))
    ran = [by_hand(transformer, each, blocks, None) for each in one]
    for passes in (two, three):
        for found, each, (_, _, others) in zip(predict(passes), passes, ran, strict=True):
            wanted, _, _ = by_hand(transformer, each, blocks, others)
            for x, y in zip(found, wanted, strict=True):
                torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)
    assert (reuse.facts["all blocks"], reuse.facts["first blocks alone"]) == (1, 2)
    # Each change is to the time that all blocks ran, and the largest of all passes and modalities.
    for change, passes in zip(reuse.facts["changes"], (two, three), strict=True):
        now = [by_hand(transformer, each, blocks, None) for each in passes]
        largest = max(
            ((x - y).abs().sum() / y.abs().sum()).item()
            for (_, first, _), (_, before, _) in zip(now, ran, strict=True)
            for x, y in zip(first, before, strict=True)
        )
        assert change == pytest.approx(largest, abs=1e-4)


@torch.inference_mode()
def test_the_threshold_decides(transformer: Transformer):
    steps = Steps()
    passes = [steps.next(0.9), steps.next(0.8)]

    def run(threshold: float) -> FirstBlock:
        reuse, predict = wrapped(transformer, threshold=threshold)
        for each in passes:
            predict(each)
        return reuse

    (change,) = run(ALWAYS).changes
    assert run(change * 0.999).decisions == [False]
    assert run(change * 1.001).decisions == [True]


@torch.inference_mode()
def test_no_more_than_max_skips_in_a_row(transformer: Transformer):
    reuse, predict = wrapped(transformer, count=9, threshold=ALWAYS, max_skips=2)
    steps, decisions = Steps(), []
    for _ in range(9):
        predict(steps.next(0.9))
        decisions += reuse.decisions
    assert decisions == [False, True, True] * 3
    assert "up to 6 of 9 evaluations may run the first block alone" in reuse.config.note([0] * 9)


@torch.inference_mode()
def test_only_in_its_span(transformer: Transformer):
    reuse, predict = wrapped(transformer, count=10, threshold=ALWAYS, max_skips=9, start=0.3, end=0.8)
    steps, decisions = Steps(), []
    for _ in range(10):
        predict(steps.next(0.9))
        decisions += reuse.decisions
    assert decisions == [False] * 3 + [True] * 5 + [False] * 2
    assert "up to 5 of 10" in reuse.config.note([0] * 10)
    assert FirstBlockConfig(start=0.0, end=1.0, max_skips=3).note([0] * 9).find("up to 6 of 9") > 0


@torch.inference_mode()
def test_a_pass_with_other_modalities_is_another(transformer: Transformer):
    """As when guidance leaves the sound out of every other step (skip_step), or a step out altogether."""
    reuse, predict = wrapped(transformer, threshold=ALWAYS, max_skips=9)
    steps, decisions = Steps(), []
    for audio_enabled in (True, False, True, False):
        passes = steps.next(0.9, audio_enabled)
        found = predict(passes)
        decisions += reuse.decisions
        assert all((audio is not None) == audio_enabled for _, audio in found)
    assert predict([]) == []
    assert decisions == [False, False, True, True]
    assert (reuse.facts["all blocks"], reuse.facts["first blocks alone"]) == (2, 2)


@torch.inference_mode()
def test_a_new_pass_runs_all_blocks_and_so_do_those_beside_it(transformer: Transformer):
    reuse, predict = wrapped(transformer, threshold=ALWAYS, max_skips=9)
    steps, decisions = Steps(), []
    for count in (2, 2, 4, 2, 4):  # as guidance by noise level asks for them
        passes = steps.next(0.9)[:count]
        found = predict(passes)
        decisions += reuse.decisions
        assert decisions[-1] or equal(found, transformer.forward_passes(passes))
    assert decisions == [False, True, False, True, True]


@torch.inference_mode()
def test_what_does_not_change_from_nothing_runs():
    """0 / 0 is no small change."""
    transformer = random_transformer(ALONE)
    for parameter in transformer.transformer_blocks[0].parameters():
        parameter.zero_()
    reuse, predict = wrapped(transformer, threshold=inf)
    steps = Steps()
    for _ in range(2):
        predict(steps.next(0.9))
    assert reuse.facts["first blocks alone"] == 0
