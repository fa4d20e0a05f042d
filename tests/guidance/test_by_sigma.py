"""Guidance by noise level: which range serves a step, and that it is what the range's own guidance would do."""

import pytest
import torch

from ltxgen.config.schema import parse
from ltxgen.diffusion import CURRENT, Pair
from ltxgen.guidance.by_sigma import BySigmaConfig, Range
from ltxgen.guidance.multimodal import ModalityGuidance, MultimodalConfig
from ltxgen.guidance.none import NoneConfig
from ltxgen.registry import config_of

STRONG = MultimodalConfig(ModalityGuidance(cfg_scale=3), ModalityGuidance(modality_scale=3))
WEAK = MultimodalConfig(ModalityGuidance(cfg_scale=1.5))
RANGES = {"low": Range(0.3, NoneConfig()), "high": Range(0.909375, STRONG), "middle": Range(0.6, WEAK)}


def fp32(sigma: float) -> float:
    return torch.tensor(sigma).item()


@pytest.mark.parametrize(
    ("sigma", "config"),
    [
        (1.0, STRONG),  # above all ranges: the highest
        (fp32(0.909375), STRONG),
        (0.61, STRONG),
        (fp32(0.6), WEAK),  # an end belongs to its range, also where its fp32 value is above it
        (0.31, WEAK),
        (fp32(0.3), NoneConfig()),
        (0.0011, NoneConfig()),
    ],
)
def test_the_lowest_range_that_reaches_a_level_serves_it(sigma, config):
    guidance = BySigmaConfig(RANGES).build(CURRENT)
    expected = config.build(CURRENT)
    assert guidance.at(sigma) == expected
    assert guidance.at(sigma).passes(0) == expected.passes(0)


def test_all_guidance_that_may_apply():
    every = BySigmaConfig(RANGES).build(CURRENT).every
    assert [[each.name for each in one.passes(0)] for one in every] == [
        ["text"],
        ["text", "negative"],
        ["text", "negative", "isolated"],
    ]


def test_ranges_nest():
    inner = BySigmaConfig({"all": Range(1.0, WEAK)})
    guidance = BySigmaConfig({"low": Range(0.5, inner), "high": Range(1.0, STRONG)}).build(CURRENT)
    assert guidance.at(0.2) == WEAK.build(CURRENT)
    assert guidance.at(0.7) == STRONG.build(CURRENT)


def test_a_range_combines_as_its_guidance_does():
    text, negative = (Pair(torch.full((1, 2, 3), value), torch.zeros(1, 2, 3)) for value in (1.0, 2.0))
    guidance = BySigmaConfig(RANGES).build(CURRENT)
    assert guidance.at(0.5).combine([text, negative], step=0).video.unique().item() == pytest.approx(0.5)


def test_its_yaml():
    problems = []
    data = {"ranges": {"all": {"up_to": 1, "guidance": {"kind": "none"}}}}
    assert parse(config_of("guidance", "by_sigma"), data, "g", problems) == BySigmaConfig(
        {"all": Range(1, NoneConfig())}
    )
    assert not problems
    parse(BySigmaConfig, {"ranges": {}}, "g", problems)
    parse(BySigmaConfig, {"ranges": {"all": {"up_to": 0, "guidance": {"kind": "nine"}}}}, "g", problems)
    assert [problem.path for problem in problems] == ["g.ranges", "g.ranges.all.up_to", "g.ranges.all.guidance.kind"]


def test_problems_stand_at_their_range():
    blocks = MultimodalConfig(ModalityGuidance(stg_scale=1.0, stg_blocks=(28,)))
    config = BySigmaConfig({"one": Range(0.5, blocks), "two": Range(0.5, NoneConfig())})
    assert [problem.path for problem in config.problems("g", num_blocks=4)] == [
        "g.ranges.one.guidance.video.stg_blocks",
        "g.ranges.two.up_to",
    ]
