"""Recorded steps against steps run one by one. In place of a GPU's graphs, torch's own tracing records operations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_transformer import LTX23, build
from test_transformer_passes import ALONE, TOGETHER, modalities, passes
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ltxgen.models.transformer import ModalityInput, TransformerPass, Velocities
from ltxgen.models.transformer.graphs import GraphedPasses, Run, graphed

ANY = 10**6
Step = list[TransformerPass]


class TracedRecording:
    """What a CUDA graph is: operations on the very tensors that `run` met, and results in the same place each time."""

    made = 0

    def __init__(self, run: Run) -> None:
        TracedRecording.made += 1
        self.results: list[Velocities] = []

        def velocities() -> list[Tensor]:
            self.results = run()
            return self._tensors()

        self.operations = make_fx(velocities)()
        self.results = [tuple(x if x is None else torch.empty(x.shape) for x in both) for both in self.results]

    def __call__(self) -> list[Velocities]:
        for place, value in zip(self._tensors(), self.operations(), strict=True):
            place.copy_(value)
        return self.results

    def _tensors(self) -> list[Tensor]:
        return [x for both in self.results for x in both if x is not None]


@pytest.fixture(autouse=True)
def _none_made() -> None:
    TracedRecording.made = 0


def at(step: Step, sigma: float) -> Step:
    """The same step at another noise level, from other latents: new tensors, which its passes share."""
    generator = torch.Generator().manual_seed(int(sigma * 1000))

    def changed(modality: ModalityInput) -> dict[str, Tensor]:
        latents = torch.randn(modality.latents.shape, generator=generator)
        return {"latents": latents, "timesteps": modality.timesteps * sigma, "sigma": modality.sigma * sigma}

    video, audio = changed(step[0].video), changed(step[0].audio)
    return [replace(each, video=replace(each.video, **video), audio=replace(each.audio, **audio)) for each in step]


def same(found: list[Velocities], wanted: list[Velocities]) -> bool:
    pairs = [pair for one, other in zip(found, wanted, strict=True) for pair in zip(one, other, strict=True)]
    return all(one is None if other is None else torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize(  # tracing takes seconds: not every kind both ways
    ("kind", "batched_tokens"),
    [("uniform", TOGETHER), ("levels", ALONE), ("masks", TOGETHER), ("no_audio_wanted", ALONE)],
)
@torch.no_grad()
def test_replayed_steps_give_what_steps_run_one_by_one_give(kind: str, batched_tokens: int):
    plain = build(LTX23, batched_tokens=batched_tokens)
    model = GraphedPasses(plain, ANY, TracedRecording)
    video, audio = modalities(kind, 1)
    kinds = [passes(video, audio, "guided"), passes(video, audio, "one")]
    found, wanted = [], []
    for sigma in (1.0, 0.9, 0.7, 0.3):
        for step in kinds:
            now = at(step, sigma)
            found.append(model.forward_passes(now))
            wanted.append(plain.forward_passes(now))
    assert TracedRecording.made == 2  # one for each kind of step
    # Compared last: a replay must not write into what an earlier one gave.
    assert all(same(*both) for both in zip(found, wanted, strict=True))
    assert not same(found[2], found[4])


@torch.no_grad()
def test_what_is_new_is_not_taken_for_what_was_recorded():
    plain = build(LTX23)
    model = GraphedPasses(plain, ANY, TracedRecording)
    step = passes(*modalities("uniform", 1), "guided")
    for sigma in (1.0, 0.9):
        model.forward_passes(at(step, sigma))
    (first, *rest) = step
    other_text = [replace(first, video=replace(first.video, context=first.video.context + 1)), *rest]
    cut = {name: getattr(first.video, name)[:, :12] for name in ("latents", "timesteps")}
    cut["positions"] = first.video.positions[:, :, :12]
    shorter = [replace(each, video=replace(each.video, **cut)) for each in step]
    for new in (other_text, step[:3], shorter):
        assert same(model.forward_passes(new), plain.forward_passes(new))
    assert TracedRecording.made == 1


@torch.no_grad()
def test_passes_of_many_tokens_run_as_they_are():
    step = passes(*modalities("uniform", 1), "guided")
    num_tokens = step[0].video.latents.shape[1]
    for limit, recorded in ((num_tokens - 1, 0), (num_tokens, 1)):
        model = GraphedPasses(build(LTX23), limit, TracedRecording)
        for sigma in (1.0, 0.9, 0.8):
            model.forward_passes(at(step, sigma))
        assert TracedRecording.made == recorded


def test_what_cannot_be_recorded_stays_as_it_is():
    model = build(LTX23)
    assert graphed(model, ANY) is model  # on the CPU
    other = object()
    assert graphed(other, ANY) is other
