"""Schedules as components, and as a denoise stage's short forms."""

import pytest
import torch

from ltxgen.config.schema import parse
from ltxgen.diffusion import ltx_sigmas
from ltxgen.registry import config_of, kinds
from ltxgen.schedule.distilled import DistilledConfig
from ltxgen.schedule.explicit import ExplicitConfig
from ltxgen.schedule.ltx2 import Ltx2Config

DISTILLED = [1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0]


def parsed(kind: str, **fields):
    problems = []
    config = parse(config_of("schedule", kind), fields, "schedule", problems)
    return config, [str(problem) for problem in problems]


def test_there_are_three():
    assert kinds("schedule") == ("distilled", "explicit", "ltx2")


def test_ltx2_is_shifted_for_4096_tokens_a_number_or_the_latents_own():
    assert Ltx2Config().levels(8, 60) == ltx_sigmas(8, 4096).tolist()
    assert Ltx2Config(tokens=1024).levels(8, 60) == ltx_sigmas(8, 1024).tolist()
    own, problems = parsed("ltx2", tokens="latent")
    assert not problems
    assert own.levels(15, 8160) == ltx_sigmas(15, 8160).tolist()


@pytest.mark.parametrize("tokens", ["latents", 0, 1.5, [4096]])
def test_wrong_tokens(tokens):
    _, (problem,) = parsed("ltx2", tokens=tokens)
    assert problem.startswith("schedule.tokens = ")


def test_distilled_has_the_published_levels():
    assert DistilledConfig().levels(None, 60) == torch.tensor(DISTILLED).tolist()
    assert DistilledConfig(steps=3).levels(None, 60) == torch.tensor(DISTILLED[-4:]).tolist()
    _, (problem,) = parsed("distilled", steps=4)
    assert problem == "schedule.steps = 4: must be one of 8, 3"


def test_explicit_levels():
    assert ExplicitConfig((0.9, 0.4, 0.0)).levels(None, 60) == torch.tensor([0.9, 0.4, 0.0]).tolist()
    with pytest.raises(ValueError, match=r"must end in 0, not in 0\.4"):
        ExplicitConfig((0.9, 0.4)).levels(None, 60)
