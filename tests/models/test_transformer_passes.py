"""The passes of a step together against each alone."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from test_transformer import AUDIO_TOKENS, LTX2, LTX23, TEXT_TOKENS, VIDEO_TOKENS, build, inputs, recording, strengths
from torch import Tensor

from ltxgen.models.transformer import ModalityInput, Perturbation, Transformer, TransformerPass, batch_limit, forks
from ltxgen.models.transformer.passes import BATCHED_TOKENS

PLAIN = Perturbation()
STG = Perturbation(skip_video_self_attention=frozenset({1}), skip_audio_self_attention=frozenset({1}))
AUDIO_STG = Perturbation(skip_audio_self_attention=frozenset({2}))
ISOLATED = Perturbation(isolate_modalities=True)
# (which of two texts, perturbation): the four of a guided step first.
STEPS = {
    "guided": [(0, PLAIN), (1, PLAIN), (0, STG), (0, ISOLATED)],
    "one": [(0, PLAIN)],
    "stg_without_text": [(0, STG), (0, ISOLATED), (1, PLAIN)],
    "stg_first": [(0, STG), (0, PLAIN)],
    "many_forks": [(0, PLAIN), (0, AUDIO_STG), (0, STG), (0, STG), (1, AUDIO_STG), (1, PLAIN)],
}
ALONE, TOGETHER = 0, 1000  # batched_tokens


def modalities(kind: str, batch: int) -> tuple[ModalityInput, ModalityInput]:
    settings = LTX2 if kind == "ltx2" else LTX23
    video, audio = inputs(settings, batch, masked=kind == "per_token")
    if kind == "levels":
        video, audio = (replace(x, **levels_of(x)) for x in (video, audio))
    if kind == "masks":
        mask = torch.ones(batch, TEXT_TOKENS, dtype=torch.int64)
        mask[:, 5:] = 0
        video, audio = (replace(x, context_mask=mask) for x in (video, audio))
        video = replace(video, attention_mask=strengths()[:batch])
    if kind == "no_audio_wanted":
        audio = replace(audio, enabled=False)
    return video, audio


def levels_of(modality: ModalityInput) -> dict[str, Tensor]:
    """Three noise levels, some tokens each."""
    num_samples, num_tokens, _ = modality.latents.shape
    levels = torch.tensor([0.0, 0.4, 1.0]) * modality.sigma[:, None]
    return {"timesteps": levels, "timestep_index": torch.arange(num_tokens).remainder(3).expand(num_samples, -1)}


def passes(video: ModalityInput, audio: ModalityInput | None, step: str) -> list[TransformerPass]:
    generator = torch.Generator().manual_seed(5)
    present = [x for x in (video, audio) if x is not None]
    negative = {id(x): torch.randn(x.context.shape, generator=generator).to(x.context) for x in present}

    def with_text(modality: ModalityInput | None, text: int) -> ModalityInput | None:
        return replace(modality, context=negative[id(modality)]) if text and modality is not None else modality

    return [TransformerPass(with_text(video, text), with_text(audio, text), left) for text, left in STEPS[step]]


@functools.cache
def transformer(kind: str, batched_tokens: int) -> Transformer:
    return build(LTX2 if kind == "ltx2" else LTX23, batched_tokens=batched_tokens)


def relative_l2(one: Tensor, other: Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("batched_tokens", [ALONE, TOGETHER])
@pytest.mark.parametrize("kind", ["uniform", "per_token", "levels", "masks", "no_audio_wanted", "ltx2"])
@pytest.mark.parametrize("batch", [1, 2])
@torch.inference_mode()
def test_passes_together_equal_each_alone(step: str, batched_tokens: int, kind: str, batch: int):
    together = passes(*modalities(kind, batch), step)
    found = transformer(kind, batched_tokens).forward_passes(together)
    alone = transformer(kind, ALONE)
    assert len(found) == len(together)
    for velocities, each in zip(found, together, strict=True):
        for one, other in zip(velocities, alone(each.video, each.audio, each.perturbation), strict=True):
            assert (one is None) == (other is None)
            assert one is None or relative_l2(one, other) <= 1e-6


@pytest.mark.parametrize("batched_tokens", [ALONE, TOGETHER])
@torch.inference_mode()
def test_passes_of_video_alone(batched_tokens: int):
    video, _ = modalities("uniform", 1)
    together = passes(video, None, "guided")
    for (found, none), each in zip(
        transformer("uniform", batched_tokens).forward_passes(together), together, strict=True
    ):
        assert none is None
        assert relative_l2(found, transformer("uniform", ALONE)(each.video, None, each.perturbation)[0]) <= 1e-6


@torch.inference_mode()
def test_levels_equal_a_timestep_for_every_token():
    video, audio = modalities("levels", 2)
    for cross_timestep in ("own", "other"):
        model = build(LTX23, cross_timestep=cross_timestep)
        spelled = [
            replace(x, timesteps=x.timesteps.gather(1, x.timestep_index), timestep_index=None) for x in (video, audio)
        ]
        for one, other in zip(model(video, audio), model(*spelled), strict=True):
            assert relative_l2(one, other) <= 1e-6


def work(batched_tokens: int, step: str) -> dict[str, int]:
    """Samples that went through each attention, and texts that were projected to keys."""
    shapes: dict[str, list[tuple]] = {}
    model = build(LTX23, attention=recording([], shapes), batched_tokens=batched_tokens)
    counted = {"texts": 0}

    def count(module: torch.nn.Module, arguments: tuple[Tensor, ...]) -> None:
        counted["texts"] += len(arguments[0])

    for block in model.transformer_blocks:
        block.attn2.to_k.register_forward_pre_hook(count)
    with torch.inference_mode():
        model.forward_passes(passes(*modalities("uniform", 1), step))
    return counted | {role: sum(q[0] for q, *_ in calls) for role, calls in shapes.items()}


def test_nothing_is_computed_twice():
    # Of three blocks: text, negative and isolated run three each, stg the last two and attends to itself in the third.
    assert work(ALONE, "guided") == {
        "texts": 3 * 2,
        "video_self": 3 + 3 + 1 + 3,
        "audio_self": 3 + 3 + 1 + 3,
        "video_text": 3 + 3 + 2 + 3,
        "audio_text": 3 + 3 + 2 + 3,
        "video_from_audio": 3 + 3 + 2,
        "audio_from_video": 3 + 3 + 2,
    }
    assert work(ALONE, "one")["texts"] == 3


def test_a_batch_wastes_what_one_of_its_passes_leaves_out():
    wasted = work(TOGETHER, "guided")
    assert wasted["texts"] == 3 * 2
    assert wasted["video_self"] == 3 + 4 + 4
    assert wasted["video_from_audio"] == 3 + 4 + 4


@torch.inference_mode()
def test_one_call_of_a_block_serves_all_passes():
    model = build(LTX23, batched_tokens=ALONE)
    calls: list[int] = []
    for index, block in enumerate(model.transformer_blocks):
        block.register_forward_pre_hook(lambda module, arguments, index=index: calls.append(index))
    model.forward_passes(passes(*modalities("uniform", 1), "guided"))
    assert calls == [0, 1, 2]


@torch.inference_mode()
def test_only_small_shapes_are_batched():
    shapes: dict[str, list[tuple]] = {}
    model = build(LTX23, attention=recording([], shapes), batched_tokens=VIDEO_TOKENS - 1)
    model.forward_passes(passes(*modalities("uniform", 1), "guided"))
    assert {q[0] for calls in shapes.values() for q, *_ in calls} == {1}
    assert VIDEO_TOKENS > AUDIO_TOKENS


@torch.inference_mode()
def test_rotary_tables_are_computed_once_for_the_same_positions():
    model = build(LTX23)
    video, audio = modalities("uniform", 1)
    _, first = model.embed(video, audio)
    _, again = model.embed(replace(video, latents=video.latents + 1), audio)
    assert again.video.rotary is first.video.rotary
    assert again.video.cross.rotary is first.video.cross.rotary
    _, moved = model.embed(replace(video, positions=video.positions * 2), audio)
    assert not torch.equal(moved.video.rotary.cos, first.video.rotary.cos)


def test_passes_over_different_tokens_are_refused():
    video, audio = modalities("uniform", 1)
    other = TransformerPass(replace(video, latents=video.latents.clone()), audio)
    with pytest.raises(AssertionError, match="same tokens"):
        transformer("uniform", ALONE).forward_passes([TransformerPass(video, audio), other])


def test_forks():
    late = Perturbation(skip_video_self_attention=frozenset({28}))
    both = Perturbation(skip_video_self_attention=frozenset({28, 40}))
    given = [("a", PLAIN), ("b", PLAIN), ("a", late), ("a", ISOLATED), ("a", both), ("b", PLAIN)]
    found = forks([(context, (perturbation,)) for context, perturbation in given], num_blocks=48)
    assert found == [(0, 0), (1, 0), (0, 28), (3, 0), (2, 40), (1, 48)]


def test_small_passes_run_as_a_batch_from_three_on_and_from_two_on_where_the_host_launches_each():
    assert [batch_limit(count) for count in (2, 3)] == [0, BATCHED_TOKENS]
    assert batch_limit(2, recorded=False) == BATCHED_TOKENS
    assert batch_limit(2, 7) == batch_limit(4, 7, recorded=False) == 7
