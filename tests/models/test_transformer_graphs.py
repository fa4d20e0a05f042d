"""Recorded steps against steps run one by one. In place of a GPU's graphs, a list of operations is recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_transformer import LTX23, build
from test_transformer_passes import ALONE, TOGETHER, modalities, passes
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ltxgen.models.transformer import ModalityInput, TransformerPass, Velocities
from ltxgen.models.transformer.graphs import GraphedPasses, Run, graphed

ANY = 10**6
Step = list[TransformerPass]


class Operations(TorchDispatchMode):
    """Keeps what is computed, with the tensors that it met and gave."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert torch.Tag.data_dependent_output not in func.tags, f"{func}: what follows depends on values"
        given = func(*args, **(kwargs or {}))
        self.done.append((func, (args, kwargs or {}), given))
        return given

    def again(self) -> Mapping[int, Tensor]:
        """Compute all of it from what the tensors that it met hold now; new tensors by the old one's id."""
        now: dict[int, Tensor] = {}
        for func, met, given in self.done:
            args, kwargs = tree_map(lambda x: now.get(id(x), x) if isinstance(x, Tensor) else x, met)
            now.update(zip(map(id, tree_leaves(given)), tree_leaves(func(*args, **kwargs)), strict=True))
        return now


class Recording:
    """What a CUDA graph is: operations on the very tensors that `run` met, and results in the same place each time."""

    made = 0

    def __init__(self, run: Run) -> None:
        Recording.made += 1
        self.operations = Operations()
        with self.operations:
            self.recorded = run()
        self.results = [tuple(x if x is None else torch.empty(x.shape) for x in both) for both in self.recorded]

    def __call__(self) -> list[Velocities]:
        now = self.operations.again()
        for place, recorded in zip(_tensors(self.results), _tensors(self.recorded), strict=True):
            place.copy_(now[id(recorded)])
        return self.results


def _tensors(velocities: list[Velocities]) -> list[Tensor]:
    return [x for both in velocities for x in both if x is not None]


@pytest.fixture(autouse=True)
def _none_made() -> None:
    Recording.made = 0


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
    model = GraphedPasses(plain, ANY, Recording)
    video, audio = modalities(kind, 1)
    kinds = [passes(video, audio, "guided"), passes(video, audio, "one")]
    found, wanted = [], []
    for sigma in (1.0, 0.9, 0.7, 0.3):
        for step in kinds:
            now = at(step, sigma)
            found.append(model.forward_passes(now))
            wanted.append(plain.forward_passes(now))
    assert Recording.made == 2  # one for each kind of step
    # Compared last: a replay must not write into what an earlier one gave.
    assert all(same(*both) for both in zip(found, wanted, strict=True))
    assert not same(found[2], found[4])


@torch.no_grad()
def test_what_is_new_is_not_taken_for_what_was_recorded():
    plain = build(LTX23)
    model = GraphedPasses(plain, ANY, Recording)
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
    assert Recording.made == 1


@torch.no_grad()
def test_passes_of_many_tokens_run_as_they_are():
    step = passes(*modalities("uniform", 1), "guided")
    num_tokens = step[0].video.latents.shape[1]
    for limit, recorded in ((num_tokens - 1, 0), (num_tokens, 1)):
        model = GraphedPasses(build(LTX23), limit, Recording)
        for sigma in (1.0, 0.9, 0.8):
            model.forward_passes(at(step, sigma))
        assert Recording.made == recorded


def test_what_cannot_be_recorded_stays_as_it_is():
    model = build(LTX23)
    assert graphed(model, ANY) is model  # on the CPU
    other = object()
    assert graphed(other, ANY) is other
