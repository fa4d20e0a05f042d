"""Guidance against the formula in float64, and the passes a step asks for."""

import numpy as np
import pytest
import torch

from ltxgen.config.schema import parse
from ltxgen.diffusion import CURRENT, LAUNCH, Pair
from ltxgen.guidance.multimodal import ModalityGuidance, MultimodalConfig
from ltxgen.guidance.none import NoneConfig
from ltxgen.models.transformer import Perturbation
from ltxgen.registry import config_of

VIDEO = ModalityGuidance(cfg_scale=3, stg_scale=1, stg_blocks=(28,), rescale_scale=0.7, modality_scale=3)
AUDIO = ModalityGuidance(cfg_scale=7, stg_scale=1, stg_blocks=(28,), rescale_scale=0.7, modality_scale=3)
HQ = ModalityGuidance(cfg_scale=3, rescale_scale=0.45, modality_scale=3)


def random_results(count, dtype=torch.float32, num_samples=1) -> list[Pair[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    # Offsets so that mean and deviation both matter.
    return [
        Pair(
            (torch.randn(num_samples, 12, 8, generator=generator) + 1).to(dtype),
            (torch.randn(num_samples, 5, 16, generator=generator) * 2).to(dtype),
        )
        for _ in range(count)
    ]


def guided_by_hand(results, scales: ModalityGuidance, names=("text", "negative", "stg", "isolated")) -> np.ndarray:
    x0 = dict(zip(names, (result.double().numpy() for result in results), strict=True))
    c = x0["text"]
    g = (
        c
        + (scales.cfg_scale - 1) * (c - x0.get("negative", c))
        + scales.stg_scale * (c - x0.get("stg", c))
        + (scales.modality_scale - 1) * (c - x0.get("isolated", c))
    )
    factor = c.std(ddof=1) / g.std(ddof=1)
    return g * (scales.rescale_scale * factor + 1 - scales.rescale_scale)


def names(guidance, step=0) -> list[str]:
    return [each.name for each in guidance.passes(step)]


def test_the_registry_finds_both_kinds():
    assert config_of("guidance", "multimodal") is MultimodalConfig
    assert config_of("guidance", "none") is NoneConfig


def test_its_yaml():
    problems = []
    data = {"kind": "multimodal", "video": {"cfg_scale": 3, "stg_scale": 1.0, "stg_blocks": [28], "skip_step": 1}}
    config = parse(MultimodalConfig, data, "guidance", problems)
    assert not problems
    assert config.video == ModalityGuidance(cfg_scale=3.0, stg_scale=1.0, stg_blocks=(28,), skip_step=1)
    parse(MultimodalConfig, {"audio": {"stg_blocks": [-1], "skip_step": -1, "cfg": 2}}, "guidance", problems)
    assert [problem.path for problem in problems] == [
        "guidance.audio.cfg",
        "guidance.audio.stg_blocks[0]",
        "guidance.audio.skip_step",
    ]


def test_four_passes_in_order():
    passes = MultimodalConfig(VIDEO, AUDIO).build(CURRENT).passes(0)
    assert [each.name for each in passes] == ["text", "negative", "stg", "isolated"]
    assert [each.context for each in passes] == ["positive", "negative", "positive", "positive"]
    text, negative, stg, isolated = passes
    assert text.perturbation == negative.perturbation == Perturbation()
    assert stg.perturbation == Perturbation(frozenset({28}), frozenset({28}))
    assert isolated.perturbation == Perturbation(isolate_modalities=True)
    assert text.enabled == Pair(True, True)


def test_only_the_modality_with_stg_is_perturbed():
    guidance = MultimodalConfig(ModalityGuidance(stg_blocks=(3,)), AUDIO).build(CURRENT)
    assert guidance.passes(0)[2].perturbation == Perturbation(frozenset(), frozenset({28}))


@pytest.mark.parametrize(
    ("video", "audio", "expected"),
    [
        (HQ, HQ, ["text", "negative", "isolated"]),
        (ModalityGuidance(), ModalityGuidance(cfg_scale=7), ["text", "negative"]),
        (ModalityGuidance(stg_scale=0.5, stg_blocks=(0,)), ModalityGuidance(), ["text", "stg"]),
        (ModalityGuidance(cfg_scale=1 + 1e-12), ModalityGuidance(modality_scale=1 - 1e-12), ["text"]),
        (ModalityGuidance(cfg_scale=1 + 1e-7), ModalityGuidance(), ["text", "negative"]),
    ],
)
def test_a_pass_runs_if_either_modality_asks(video, audio, expected):
    guidance = MultimodalConfig(video, audio).build(CURRENT)
    assert names(guidance) == expected


@pytest.mark.parametrize("config", [NoneConfig(), MultimodalConfig()])
def test_no_guidance_is_the_text_pass(config):
    guidance = config.build(CURRENT)
    results = random_results(1)
    assert names(guidance) == ["text"]
    combined = guidance.combine(results, step=0)
    assert torch.equal(combined.video, results[0].video)
    assert torch.equal(combined.audio, results[0].audio)


@pytest.mark.parametrize("num_samples", [1, 3])
def test_combining(num_samples):
    results = random_results(4, num_samples=num_samples)
    combined = MultimodalConfig(VIDEO, AUDIO).build(CURRENT).combine(results, step=0)
    for modality, scales in (("video", VIDEO), ("audio", AUDIO)):
        expected = guided_by_hand([getattr(result, modality) for result in results], scales)
        np.testing.assert_allclose(getattr(combined, modality).numpy(), expected, rtol=1e-5, atol=1e-5)


def test_a_pass_that_only_the_other_modality_asked_for_changes_nothing():
    results = random_results(3)
    combined = MultimodalConfig(HQ, ModalityGuidance()).build(CURRENT).combine(results, step=0)
    assert torch.equal(combined.audio, results[0].audio)
    expected = guided_by_hand([result.video for result in results], HQ, ("text", "negative", "isolated"))
    np.testing.assert_allclose(combined.video.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_current_combines_bfloat16_in_fp32_and_launch_does_not():
    results = random_results(4, torch.bfloat16)
    config = MultimodalConfig(VIDEO, AUDIO)
    current, launch = (config.build(numerics).combine(results, step=0).video for numerics in (CURRENT, LAUNCH))
    assert current.dtype == launch.dtype == torch.bfloat16
    expected = guided_by_hand([result.video for result in results], VIDEO)
    # One rounding of the result, against one after every operation.
    np.testing.assert_allclose(current.double().numpy(), expected, rtol=2**-8, atol=1e-5)
    assert not torch.equal(current, launch)
    np.testing.assert_allclose(launch.double().numpy(), expected, rtol=0.1, atol=0.2)


def test_one_modality_alone():
    results = [Pair(None, result.audio) for result in random_results(4)]
    combined = MultimodalConfig(VIDEO, AUDIO).build(CURRENT).combine(results, step=0)
    assert combined.video is None
    np.testing.assert_allclose(
        combined.audio.numpy(), guided_by_hand([result.audio for result in results], AUDIO), rtol=1e-5, atol=1e-5
    )


def test_a_step_that_both_skip_repeats_the_last_prediction():
    guidance = MultimodalConfig(
        ModalityGuidance(cfg_scale=3, skip_step=1), ModalityGuidance(cfg_scale=7, skip_step=2)
    ).build(CURRENT)
    assert [len(guidance.passes(step)) for step in range(6)] == [2, 0, 2, 2, 2, 0]
    last = random_results(1)[0]
    combined = guidance.combine([], step=1, previous=last)
    assert combined.video is last.video
    assert combined.audio is last.audio


def test_a_modality_that_skips_is_off_and_repeats_its_last_prediction():
    skipping = ModalityGuidance(cfg_scale=3, stg_scale=1, stg_blocks=(28,), skip_step=1)
    guidance = MultimodalConfig(skipping, ModalityGuidance(cfg_scale=7)).build(CURRENT)
    assert names(guidance, 0) == ["text", "negative", "stg"]
    # Nobody is left who asks for the perturbed pass.
    assert names(guidance, 1) == ["text", "negative"]
    assert all(each.enabled == Pair(False, True) for each in guidance.passes(1))
    last, *results = random_results(3)
    combined = guidance.combine(results, step=1, previous=last)
    assert combined.video is last.video
    text, negative = (result.audio.double().numpy() for result in results)
    np.testing.assert_allclose(combined.audio.numpy(), text + 6 * (text - negative), rtol=1e-5, atol=1e-5)


def test_blocks_that_the_transformer_does_not_have():
    problems = MultimodalConfig(VIDEO, ModalityGuidance(stg_scale=1.0)).problems("stages.base.guidance", num_blocks=4)
    assert [str(problem) for problem in problems] == [
        "stages.base.guidance.video.stg_blocks = [28]: must be between 0 and 3, this transformer has 4 blocks",
        "stages.base.guidance.audio.stg_blocks: must name a block when stg_scale is not 0; or set that to 0",
    ]
    assert not MultimodalConfig(VIDEO, AUDIO).problems("stages.base.guidance", num_blocks=48)
