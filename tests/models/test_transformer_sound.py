"""The transformer for sound alone: the whole one's audio half, to the bit."""

from __future__ import annotations

import copy

import pytest
import torch

from ltxgen.artifacts.components import COMPONENTS, BuildOptions
from ltxgen.artifacts.synthetic import architecture
from ltxgen.models.text_encoder.features import FeatureExtractorV2
from ltxgen.models.transformer import ModalityInput, Perturbation, Transformer, is_for_sound, without_video

CONFIG = architecture("ltx23_tiny")["checkpoint"]


@pytest.fixture(scope="module")
def whole() -> Transformer:
    torch.manual_seed(0)
    transformer = COMPONENTS["transformer"].build(CONFIG, BuildOptions())
    assert isinstance(transformer, Transformer)
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return transformer.eval().requires_grad_(False)


def modality(num_tokens: int, channels: int, width: int, axes: int) -> ModalityInput:
    generator = torch.Generator().manual_seed(num_tokens)
    starts = torch.arange(num_tokens, dtype=torch.float32).expand(1, axes, -1)
    return ModalityInput(
        latents=torch.randn(1, num_tokens, channels, generator=generator),
        timesteps=torch.full((1, 1), 0.7),
        sigma=torch.full((1,), 0.7),
        positions=torch.stack([starts, starts + 1], dim=-1),
        context=torch.randn(1, 5, width, generator=generator),
    )


@pytest.mark.parametrize("skipped", [frozenset(), frozenset({1})])
def test_it_predicts_what_the_whole_one_does_where_modalities_are_isolated(whole: Transformer, skipped: frozenset[int]):
    config = whole.config
    audio = modality(6, config.audio.in_channels, config.audio.context_dim, 1)
    video = modality(8, config.video.in_channels, config.video.context_dim, 3)
    isolated = Perturbation(skip_audio_self_attention=skipped, isolate_modalities=True)
    _, wanted = whole(video, audio, isolated)
    alone = without_video(copy.deepcopy(whole))
    velocity, found = alone(None, audio, Perturbation(skip_audio_self_attention=skipped))
    assert velocity is None
    assert wanted is not None
    assert torch.equal(found, wanted)
    _, joined = whole(video, audio)  # which attention across does change
    assert not torch.equal(joined, wanted)


def test_its_parameters_are_the_ones_that_are_for_sound(whole: Transformer):
    alone = without_video(copy.deepcopy(whole)).state_dict()
    assert alone.keys() == {key for key in whole.state_dict() if is_for_sound(key)}
    size = sum(tensor.numel() for tensor in alone.values())
    assert size < sum(tensor.numel() for tensor in whole.state_dict().values()) / 2


def test_the_text_projection_of_sound_is_half_of_the_whole_one():
    torch.manual_seed(0)
    options = BuildOptions(num_text_states=3)
    extractor = COMPONENTS["text_projection"].build(CONFIG, options)
    assert isinstance(extractor, FeatureExtractorV2)
    hidden, mask = torch.randn(1, 4, extractor.text_width, 3), torch.tensor([[0, 1, 1, 1]])
    _, wanted = extractor(hidden, mask)
    keys = set(extractor.state_dict())
    video, found = extractor.without_video()(hidden, mask)
    assert video is None
    assert torch.equal(found, wanted)
    assert set(extractor.state_dict()) == {key for key in keys if key.startswith("audio_")}
