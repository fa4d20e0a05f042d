"""Reuse in whole runs: what a plan says of it, what it refuses, what a run leaves."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file

from ltxgen.config import compose
from ltxgen.config.recipe import parse_recipe
from ltxgen.recipe.plan import Plan, make_plan
from ltxgen.stage.denoise import Denoise

INTERVAL, FIRST_BLOCK = (f"reuse@stages.base.reuse={kind}" for kind in ("interval", "first_block"))
WHOLE = ("stages.base.reuse.start=0", "stages.base.reuse.end=1")
STEPS = "stages.base.steps=10"


@pytest.fixture(scope="module")
def planned(tiny_set, offline, tiny_words) -> Callable[..., Plan]:
    return lambda *words: make_plan(parse_recipe(compose.compose_config([*tiny_words, *words])))


def passes(plan: Plan) -> list[int]:
    return plan.stages["base"].describe()["passes"]


def test_a_plan_knows_what_an_interval_leaves_out(planned):
    plan = planned(STEPS, INTERVAL, "stages.base.reuse.every=3")
    assert passes(plan) == [4, 4, 0, 4, 0, 0, 4, 0, 0, 4]
    assert plan.notes[-1] == (
        "stages.base.reuse interval, an approximation: 5 of 10 evaluations are not computed but extrapolated (order 1)"
    )
    assert "for 10, predicted" in next(line for line in plan.parallel.lines() if line.startswith("base"))
    whole, part = (plan.parallel.cost.stages["base"] for plan in (planned(STEPS), plan))
    seconds = [plan.parallel.cost.stage_seconds(work, plan.parallel.shape) for work in (whole, part)]
    assert seconds[1] == pytest.approx(seconds[0] / 2)


def test_an_interval_keeps_to_ranges_of_guidance(planned):
    """Where the guidance becomes another one, a step is computed that would have been left out."""
    sigmas = planned(STEPS).stages["base"].sigmas.tolist()
    words = ("guidance@stages.base.guidance=by_sigma", f"stages.base.guidance.ranges.low.up_to={sigmas[5]}")
    assert passes(planned(STEPS, INTERVAL, *WHOLE, *words)) == [4, 0, 4, 0, 4, 1, 1, 0, 1, 0]


def test_a_plan_of_first_blocks(planned):
    plan = planned(STEPS, FIRST_BLOCK)
    assert passes(plan) == [4] * 10
    assert plan.notes[-1].startswith(
        "stages.base.reuse first_block, an approximation: up to 6 of 10 evaluations may run the first block alone"
    )
    # Beside the step itself: what the first block and the others added, for each of four passes.
    base, plain = (plan.stages["base"] for plan in (plan, planned(STEPS)))
    config = plan.parallel.config
    tokens = base.work.tokens
    hidden = 4 * (tokens.video * config.video.width + tokens.audio * config.audio.width)
    assert base.activation_bytes(0) == plain.activation_bytes(0) + 4 * 2 * hidden


def test_no_reuse_is_not_mentioned(planned):
    plan = planned(STEPS)
    assert not any("reuse" in note for note in plan.notes)
    assert "reuse" not in plan.stages["base"].describe()


def test_cuda_graphs_are_left_off(planned):
    def noted(word: str, tokens: int) -> bool:
        stage = planned(STEPS, word).stages["base"]
        assert isinstance(stage, Denoise)
        object.__setattr__(stage.setting, "graphed_tokens", tokens)
        return "not recorded as CUDA graphs" in stage.notes[0]

    num_tokens = planned(STEPS).stages["base"].work.tokens.video
    assert noted(FIRST_BLOCK, num_tokens)
    assert not noted(FIRST_BLOCK, num_tokens - 1)
    assert not noted(INTERVAL, num_tokens)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (
            (INTERVAL, "sampler@stages.base.sampler=res_2s"),
            "stages.base.reuse = interval: the sampler `res_2s` takes the difference of two evaluations a step",
        ),
        (
            (FIRST_BLOCK, "sampler@stages.base.sampler=res_2s"),
            "stages.base.reuse = first_block: the sampler `res_2s` takes the difference of two evaluations a step",
        ),
        (
            (FIRST_BLOCK, "stages.base.checkpoint_every=2"),
            "stages.base.checkpoint_every = 2: a stage can't go on from a checkpoint with the reuse `first_block`",
        ),
        (
            (FIRST_BLOCK, "stages.base.reuse.blocks=100"),
            "stages.base.reuse.blocks = 100: must be less than",
        ),
        (
            (INTERVAL, "stages.base.reuse.start=0.9"),
            "stages.base.reuse.end = 0.9: must be above stages.base.reuse.start, which is 0.9",
        ),
    ],
)
def test_what_is_refused(planned, words, problem):
    problems = [str(each) for each in planned(STEPS, *words).problems]
    assert len(problems) == 1
    assert problems[0].startswith(problem)


@pytest.mark.parametrize("words", [(INTERVAL, "stages.base.checkpoint_every=2"), (INTERVAL,), (FIRST_BLOCK,)])
@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "gradient_estimation"])
def test_what_is_not(planned, words, sampler):
    assert planned(STEPS, *words, f"sampler@stages.base.sampler={sampler}").problems == ()


def test_a_threshold_of_0_is_bit_for_bit_none(stored_run):
    plain, never = stored_run(), stored_run(FIRST_BLOCK, "stages.base.reuse.threshold=0", *WHOLE)
    wanted, found = (load_file(folder / "tensors.safetensors") for folder in (plain, never))
    assert wanted.keys() == found.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    manifests = [json.loads((folder / "manifest.json").read_text())["stages"]["base"] for folder in (plain, never)]
    assert "reuse" not in manifests[0]
    assert manifests[1]["reuse"].pop("changes")
    assert manifests[1]["reuse"] == {"kind": "first_block", "all blocks": 2, "first blocks alone": 0}


def test_a_manifest_counts_what_was_reused(stored_run):
    found = {}
    for word, more in ((INTERVAL, ("stages.base.reuse.order=0",)), (FIRST_BLOCK, ("stages.base.reuse.threshold=1e9",))):
        folder = stored_run("stages.base.steps=4", word, *more, *WHOLE)
        found[word] = json.loads((folder / "manifest.json").read_text())
        tensors = load_file(folder / "tensors.safetensors")
        x0 = [tensors[f"base.call{number:03d}.x0.video"] for number in range(4)]
        # Repeated by one, computed anew from the latents of now by the other.
        assert torch.equal(x0[0], x0[1]) == (word == INTERVAL)
        assert not torch.equal(x0[1], x0[2])
    stages = {word: manifest["stages"]["base"]["reuse"] for word, manifest in found.items()}
    assert stages[INTERVAL] == {"kind": "interval", "computed": 2, "extrapolated": 2}
    assert stages[FIRST_BLOCK]["all blocks"] == 1
    assert stages[FIRST_BLOCK]["first blocks alone"] == 3
    assert len(stages[FIRST_BLOCK]["changes"]) == 3
    assert any("approximation" in note for note in found[INTERVAL]["notes"])


def test_blocks_may_stream(stored_run):
    """Those that are skipped are not called, and what was copied ahead for them is the next step's or dropped."""
    words = ("stages.base.steps=4", FIRST_BLOCK, "stages.base.reuse.threshold=1e9", *WHOLE)
    folders = stored_run(*words), stored_run(*words, "memory=stream", "memory.blocks_on_device=0")
    stays, streams = (load_file(folder / "tensors.safetensors") for folder in folders)
    assert json.loads((folders[1] / "manifest.json").read_text())["runtime"]["memory"] == "stream"
    assert all(torch.equal(streams[name], stays[name]) for name in stays)
