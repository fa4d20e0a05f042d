"""`precision` in a plan: what it says, what it refuses, and how far a whole run in fp8 goes from the plain one."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from ltxgen.artifacts.load import load_component
from ltxgen.config import compose
from ltxgen.config.recipe import parse_recipe
from ltxgen.models.transformer.float8 import Float8Layers, Float8Linear
from ltxgen.recipe.plan import Plan, make_plan
from ltxgen.recipe.precision import precision_problems

CUDA = torch.device("cuda", 0)
FP8 = ("precision=fp8",)


@pytest.fixture
def plan_of(tiny_set, tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def plan(*words: str) -> Plan:
        config = compose.compose_config(["+recipe=ltx23_two_stage", "model=ltx23_tiny", "runtime.device=cpu", *words])
        return make_plan(parse_recipe(config))

    return plan


def relative_l2(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found.double() - wanted.double()).norm() / wanted.double().norm()).item()


def test_a_plan_says_how_much_runs_in_fp8(plan_of):
    plan = plan_of("precision=fp8")
    assert plan.problems == ()
    (note,) = [note for note in plan.notes if "fp8" in note]
    assert "56 of 164 linear layers" in note
    assert "an approximation" in note
    assert not [note for note in plan_of().notes if "fp8" in note]


def test_a_pattern_that_spares_nothing_is_refused(plan_of):
    problems = [str(each) for each in plan_of("precision=fp8", "precision.skip=['*.ff.*','*.audio_fff.*']").problems]
    assert problems == ["precision.skip[1] = *.audio_fff.*: matches no layer that could run in fp8"]


def test_forecasts_count_what_layers_in_fp8_hold(plan_of):
    """The predicted peak of base, and the weights of which times are predicted, against the loaded component."""
    plain, quick = (plan_of("runtime.dtype=bfloat16", "memory.load_ahead=false", *words) for words in ((), FP8))
    modules = [
        load_component("transformer", plan.artifacts["checkpoint"], "cpu", plan.dtype, plan.options)
        for plan in (plain, quick)
    ]
    held = [sum(each.nbytes for each in module.state_dict().values()) for module in modules]
    peaks = [plan.memory.forecast.stages["base"].device for plan in (plain, quick)]
    assert peaks[0] - peaks[1] == held[0] - held[1] > 0
    layers = [layer for layer in modules[1].modules() if isinstance(layer, Float8Linear)]
    assert sum(quick.parallel.cost.float8.weights) == sum(layer.weight.numel() for layer in layers)
    assert sum(plain.parallel.cost.float8.weights) == 0


@pytest.mark.parametrize("memory", ["swap", "stream"])
def test_weights_in_fp8_may_move(plan_of, memory: str):
    plan = plan_of("precision=fp8", f"memory={memory}")
    assert plan.problems == ()
    assert plan.here == []
    assert plan.memory.forecast.policy.startswith(memory)


def test_sharded_weights_are_refused(plan_of):
    words = ("precision=fp8", "parallel=ulysses", "parallel.num_processes=2", "parallel.weights=sharded")
    (problem,) = [each for each in plan_of(*words).problems if "precision" in each.path]
    assert "sharded" in problem.message


@pytest.mark.parametrize(("capability", "refused"), [((8, 0), True), ((8, 9), False), ((9, 0), False)])
def test_a_gpu_without_fp8_units_is_refused(monkeypatch: pytest.MonkeyPatch, capability, refused: bool):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "card")
    problems = precision_problems(Float8Layers(), None, CUDA, torch.bfloat16, sharded=False)
    assert [str(problem) for problem in problems] == (
        ["precision.kind = fp8: fp8 needs compute capability 8.9, and the card has 8.0; use precision=none"]
        if refused
        else []
    )
    assert precision_problems(None, None, CUDA, torch.bfloat16, sharded=True) == []


def test_fp8_within_float32_is_refused_on_a_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    (problem,) = precision_problems(Float8Layers(), None, CUDA, torch.float32, sharded=False)
    assert problem.path == "runtime.dtype"
    assert precision_problems(Float8Layers(), None, torch.device("cpu"), torch.float32, sharded=False) == []


def test_a_run_in_fp8_stays_near_the_plain_one(stored_run):
    plain, quick = (
        load_file(stored_run(*words) / "tensors.safetensors")
        for words in (("runtime.dtype=float32",), ("runtime.dtype=float32", "precision=fp8"))
    )
    errors = {name: relative_l2(quick[name], plain[name]) for name in plain}
    assert errors["base.noise.video"] == errors["context.video.positive"] == 0
    for modality in ("video", "audio"):
        assert 1e-3 < errors[f"base.call000.forward0.{modality}"] < 0.05
        assert 1e-3 < errors[f"refine.final.{modality}"] < 0.15, errors
