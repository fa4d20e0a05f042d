"""What is chosen for each role on devices that are described, not present; and what is refused."""

from __future__ import annotations

import dataclasses
import typing

import pytest
import torch

from ltxgen import registry
from ltxgen.attention import DeviceFacts
from ltxgen.attention.auto import AutoConfig
from ltxgen.attention.choice import Side, availability, choose, role_specs
from ltxgen.attention.protocol import ROLES, Package, backend
from ltxgen.config.errors import Problem
from ltxgen.config.recipe import Recipe
from ltxgen.config.schema import parse_value
from ltxgen.models.transformer.attention import AttentionByRole

CPU = DeviceFacts("cpu")
HOPPER = DeviceFacts("cuda", (9, 0))
BLACKWELL = DeviceFacts("cuda", (10, 0))
AMPERE = DeviceFacts("cuda", (8, 0))
STAGE_1 = role_specs(Side(128, 6144), Side(64, 126), 1024)  # 768x512x121
LONG = {"video_self", "video_text"}


@pytest.fixture
def installed(monkeypatch):
    """`installed("flash3")`: these backends' packages are there and import, the others' are missing."""

    def install(*kinds: str) -> None:
        modules = {backend(kind).needs.package.module for kind in kinds}
        missing = lambda self: None if self.module in modules else f"{self.module} is not installed ({self.source})"  # noqa: E731
        monkeypatch.setattr(Package, "missing", missing)
        monkeypatch.setattr(Package, "broken", lambda self: None)

    install()
    return install


def named(kind):
    return registry.config_of("attention", kind)()


def taken(plan):
    return {choice.role: choice.kind for choice in plan.choices}


def by_length(long, short="sdpa"):
    return {role: long if role in LONG else short for role in ROLES}


@pytest.mark.parametrize(
    ("device", "dtype", "packages", "long"),
    [
        (CPU, torch.float32, ("flash3", "flash4"), "sdpa"),
        (CPU, torch.bfloat16, (), "sdpa"),
        (HOPPER, torch.bfloat16, (), "sdpa_cudnn"),
        (HOPPER, torch.float16, ("flash2", "xformers", "flex"), "sdpa_cudnn"),
        (HOPPER, torch.bfloat16, ("flash3",), "flash3"),
        (HOPPER, torch.bfloat16, ("flash3", "flash4"), "flash4"),
        (HOPPER, torch.bfloat16, ("sage", "triton_fp8"), "sdpa_cudnn"),
        (HOPPER, torch.float32, ("flash3", "flash4"), "sdpa"),
        (BLACKWELL, torch.bfloat16, ("flash3",), "sdpa_cudnn"),
        (BLACKWELL, torch.bfloat16, ("flash3", "flash4"), "flash4"),
        (DeviceFacts("cuda", (11, 0)), torch.bfloat16, (), "sdpa_cudnn"),
        (AMPERE, torch.bfloat16, ("flash2", "flash3", "flash4"), "sdpa"),
    ],
)
@pytest.mark.parametrize("roles", [STAGE_1, role_specs()], ids=["sizes known", "unknown"])
def test_auto(device, dtype, packages, long, roles, installed):
    installed(*packages)
    plan = choose(AutoConfig(), device, dtype, roles)
    assert taken(plan) == by_length(long)
    assert plan.problems == ()
    for choice in plan.choices:
        # Everything that there is was taken or passed over with a reason.
        passed = dict(choice.passed_over)
        assert {choice.kind, *passed} == set(registry.kinds("attention")) - {"auto"}
        assert all(passed.values())
        assert choice.why
        assert choice.masked == "sdpa"
        function = getattr(plan.functions, choice.role)
        assert function.unmasked.kind == choice.kind
        assert function.masked.takes_masks


def test_roles_with_masks_and_short_ones_stay_with_torch(installed):
    installed("flash3")
    masked = role_specs(Side(128, 6144), Side(64, 126), 1024, masked=["video_self"])
    assert taken(choose(AutoConfig(), HOPPER, torch.bfloat16, masked)) == {**by_length("flash3"), "video_self": "sdpa"}
    short = role_specs(Side(128, 96), Side(64, 26), 1024)
    assert set(taken(choose(AutoConfig(), HOPPER, torch.bfloat16, short)).values()) == {"sdpa"}


def test_heads_that_a_backend_does_not_take(installed):
    installed("flash3", "flash4")
    plan = choose(AutoConfig(), HOPPER, torch.bfloat16, role_specs(Side(160, 6144), Side(64, 126), 1024))
    assert taken(plan)["video_self"] == "flash3"
    reasons = dict(plan.choices[0].passed_over)
    assert reasons["flash4"] == "it takes heads of multiples of 8 from 8 to 128, and these have 160"
    plan = choose(AutoConfig(), HOPPER, torch.bfloat16, role_specs(Side(300, 6144), Side(64, 126), 1024))
    assert taken(plan)["video_self"] == "sdpa"


def test_ring_attention_gets_backends_that_give_log_sum_exps(installed):
    installed("flash3", "xformers")
    roles = role_specs(Side(128, 6144), Side(64, 126), 1024, needs_lse=ROLES)
    plan = choose(AutoConfig(), HOPPER, torch.bfloat16, roles)
    assert taken(plan) == by_length("flash3")
    assert "no log-sum-exp" in dict(plan.choices[0].passed_over)["xformers"]
    refused = choose(named("xformers"), HOPPER, torch.bfloat16, roles)
    assert len(refused.problems) == len(ROLES)
    assert "can't serve video_self: it gives no log-sum-exp" in refused.problems[0].message


def test_why_the_others_were_passed_over(installed):
    installed("sage")
    plan = choose(AutoConfig(), HOPPER, torch.bfloat16)
    reasons = dict(plan.choices[0].passed_over)
    assert reasons["flash3"].startswith("flash_attn_interface is not installed")
    assert reasons["sage"] == "only by name, it approximates: queries and keys are rounded to 8 bits, values to 8 or 16"
    assert reasons["sdpa"] == "comes after sdpa_cudnn in speed"
    lines = plan.lines()
    assert lines[0].startswith("video_self, video_text: sdpa_cudnn, calls with a mask sdpa: ")
    assert "622-651" in lines[0]
    assert any(line.startswith("all roles, not flash3: flash_attn_interface is not installed") for line in lines)
    assert any(line.startswith("video_self, video_text, not sdpa: ") for line in lines)


def test_a_backend_by_name_serves_all_roles_and_its_masks_go_elsewhere(installed):
    installed("flash3")
    plan = choose(named("flash3"), HOPPER, torch.bfloat16, STAGE_1)
    assert set(taken(plan).values()) == {"flash3"}
    assert plan.lines() == ["all roles: flash3, calls with a mask sdpa: asked for by name"]
    assert choose(named("reference"), CPU, torch.float32).lines() == ["all roles: reference: asked for by name"]


@pytest.mark.parametrize(
    ("kind", "loss"),
    [
        ("sage", "queries and keys are rounded to 8 bits"),
        ("triton_fp8", "queries, keys, values and softmax weights are rounded to fp8"),
    ],
)
def test_approximations_are_declared_and_taken_by_name_only(kind, loss, installed):
    installed(kind)
    (line,) = choose(named(kind), HOPPER, torch.bfloat16).lines()
    assert line.startswith(f"all roles: {kind}, calls with a mask sdpa: asked for by name; it approximates: {loss}")
    passed_over = dict(choose(AutoConfig(), HOPPER, torch.bfloat16).choices[0].passed_over)
    assert passed_over[kind].startswith(f"only by name, it approximates: {loss}")


@pytest.mark.parametrize(
    "kind", ["flash2", "flash3", "flash4", "sage", "triton_fp8", "xformers", "sdpa_cudnn", "sdpa_flash"]
)
def test_a_backend_by_name_that_can_not_run_is_refused(kind, installed):
    plan = choose(named(kind), CPU, torch.float32)
    (problem,) = plan.problems
    assert (problem.path, problem.value) == ("attention", kind)
    assert problem.message.startswith("can't run here: it runs on CUDA GPUs only; ")
    assert problem.message.endswith("; there are flex, reference, sdpa")
    if backend(kind).needs.package is not None:
        assert "is not installed (" in problem.message
    # The plan can still be shown, and holds functions that run.
    assert plan.choices == ()
    assert plan.functions == AttentionByRole()


def test_roles_by_name(installed):
    plan = choose(AutoConfig(video_self="reference", audio_from_video="flex"), CPU, torch.float32)
    assert taken(plan) == dict.fromkeys(ROLES, "sdpa") | {"video_self": "reference", "audio_from_video": "flex"}
    lines = plan.lines()
    assert lines[0] == "video_self: reference: asked for by name"
    assert lines[1].startswith("all roles but video_self, audio_from_video: sdpa: ")
    assert lines[2] == "audio_from_video: flex: asked for by name"
    wrong = choose(AutoConfig(video_self="flash3", audio_text="sdpaa"), HOPPER, torch.bfloat16)
    assert [problem.path for problem in wrong.problems] == ["attention.video_self", "attention.audio_text"]
    assert "flash_attn_interface is not installed" in wrong.problems[0].message
    assert wrong.problems[1].message.endswith("did you mean 'sdpa'?")


def test_availability_lists_every_backend(installed):
    installed("flash2")
    found = availability(HOPPER, torch.bfloat16)
    assert set(found) == set(registry.kinds("attention")) - {"auto"}
    assert {kind for kind, why in found.items() if why is None} == {
        "flash2",
        "reference",
        "sdpa",
        "sdpa_cudnn",
        "sdpa_efficient",
        "sdpa_flash",
    }
    assert "is not installed" in found["flash4"]


def test_the_yaml_of_every_backend_parses():
    hint = typing.get_type_hints(Recipe, include_extras=True)["attention"]
    problems: list[Problem] = []
    for kind in registry.kinds("attention"):
        assert parse_value(hint, {"kind": kind}, "attention", problems).kind == kind
    assert parse_value(hint, {"kind": "auto", "video_self": "flash3"}, "attention", problems).video_self == "flash3"
    assert problems == []
    parse_value(hint, {"kind": "auto", "video_slef": "flash3"}, "attention", problems)
    assert "did you mean 'video_self'?" in str(problems[0])


def test_the_functions_serve_a_transformer(installed):
    plan = choose(AutoConfig(), CPU, torch.float32)
    q, k, v = (torch.randn(1, 2, 3, 8) for _ in range(3))
    for field in dataclasses.fields(AttentionByRole):
        out = getattr(plan.functions, field.name)(q, k, v, torch.zeros(1, 1, 1, 3))
        torch.testing.assert_close(out, backend("reference")(q, k, v, None))
