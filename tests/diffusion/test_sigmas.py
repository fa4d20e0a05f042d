"""Schedules against published tables and diffusers' flow-match Euler scheduler."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from ltxgen.diffusion import ltx_sigmas, sigmas_problem

# Six decimals, as the official scheduler gives them.
THIRTY_STEPS = """1 .994957 .989603 .983908 .97784 .971358 .964421 .956978 .948972 .940336 .930994 .920854 .90981
.897735 .884479 .869858 .853651 .835584 .815319 .792427 .766363 .736418 .701656 .660813 .612141 .553148 .480164
.387541 .26612 .1 0"""
EIGHT_STEPS = "1 .965712 .921875 .863856 .783445 .664579 .471003 .1 0"
HQ_FIFTEEN_STEPS = """1 .993491 .986015 .97734 .967151 .955015 .940314 .92214 .899096 .868923 .827707 .768028 .673897
.503378 .1 0"""
HQ_TOKENS = 16 * (544 // 32) * (960 // 32)


@pytest.mark.parametrize(
    ("table", "tokens"), [(THIRTY_STEPS, 4096), (EIGHT_STEPS, 4096), (HQ_FIFTEEN_STEPS, HQ_TOKENS)]
)
def test_published_tables(table, tokens):
    expected = torch.tensor([float(value) for value in table.split()])
    sigmas = ltx_sigmas(len(expected) - 1, tokens)
    assert sigmas.dtype == torch.float32
    torch.testing.assert_close(sigmas, expected, rtol=0, atol=6e-7)


@pytest.mark.parametrize("steps", [2, 3, 8, 30, 50])
@pytest.mark.parametrize(("tokens", "mu"), [(4096, 2.05), (1024, 0.95), (8160, 3.505208)])
def test_agrees_with_diffusers(steps, tokens, mu):
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, time_shift_type="exponential", shift_terminal=0.1
    )
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    torch.testing.assert_close(ltx_sigmas(steps, tokens), scheduler.sigmas, rtol=0, atol=6e-7)


def test_the_shift_is_4096_tokens_unless_said():
    assert torch.equal(ltx_sigmas(30), ltx_sigmas(30, 4096))
    assert not torch.equal(ltx_sigmas(30), ltx_sigmas(30, 6144))


@pytest.mark.parametrize(("steps", "tokens"), [(0, 4096), (-1, 4096), (1, 4096), (30, 100_000)])
def test_no_schedule_is_refused(steps, tokens):
    with pytest.raises(ValueError, match=r"steps: must be|tokens: too many"):
        ltx_sigmas(steps, tokens)


@pytest.mark.parametrize("steps", [2, 8, 30])
def test_own_schedules_have_no_problem(steps):
    assert sigmas_problem(ltx_sigmas(steps).tolist()) is None


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        ([], "two levels"),
        ([0.0], "two levels"),
        ([1.0, float("nan"), 0.0], "between 0 and 1"),
        ([float("inf"), 0.0], "between 0 and 1"),
        ([1.1, 0.0], "between 0 and 1"),
        ([0.5, -0.1], "between 0 and 1"),
        ([0.9, 0.4], "end in 0, not in 0.4"),
        ([0.4, 0.9, 0.0], "0.9 follows 0.4"),
        ([0.4, 0.4, 0.0], "0.4 follows 0.4"),
        ([0.4, 0.0, 0.0], "0.0 follows 0.0"),
    ],
)
def test_schedules_given_by_hand(sigmas, message):
    assert message in sigmas_problem(sigmas)
