"""Passes over ranks: balanced by cost, and traffic known from shapes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from ltxgen.diffusion.pair import Pair
from ltxgen.models.transformer import Perturbation, TransformerConfig
from ltxgen.parallel.guidance import deal, forks_of, relative_cost
from ltxgen.parallel.shape import MeshShape
from ltxgen.parallel.traffic import Traffic, step_traffic

STG = Perturbation(frozenset({28}), frozenset({28}))
ISOLATED = Perturbation(isolate_modalities=True)
PLAIN, BOTH = Perturbation(), Pair(True, True)


@dataclass(frozen=True)
class OnePass:
    context: int
    perturbation: Perturbation = PLAIN
    enabled: Pair[bool] = BOTH


ALL = (OnePass(0), OnePass(1), OnePass(0, STG), OnePass(0, ISOLATED))
LTX23 = {
    "num_layers": 48,
    "cross_attention_adaln": True,
    "caption_proj_before_connector": True,
}


@pytest.mark.parametrize(
    ("num_passes", "num_ranks", "owners"),
    [(4, 1, (0, 0, 0, 0)), (4, 2, (0, 1, 0, 1)), (4, 3, (0, 1, 0, 2)), (4, 4, (0, 1, 2, 3)), (1, 4, (0,)), (0, 4, ())],
)
def test_deal(num_passes: int, num_ranks: int, owners: tuple[int, ...]):
    assert deal(ALL[:num_passes], num_ranks, num_blocks=48) == owners


def test_stg_starts_from_the_text_pass_where_it_parts_from_it():
    assert forks_of(ALL, 48) == [(0, 0), (1, 0), (0, 28), (3, 0)]
    assert forks_of(ALL[2:], 48) == [(0, 0), (1, 0)]  # without the text pass it runs whole
    assert relative_cost(STG, 48, first_block=28) == pytest.approx((20 - 1 / 8) / 48)


def test_a_block_that_the_transformer_lacks_saves_nothing():
    """Such a guidance is refused; a plan says what else is wrong with the run, and predicts no negative time."""
    assert forks_of(ALL, 4)[2] == (0, 28)
    assert relative_cost(STG, 4, first_block=28) == 0
    assert relative_cost(STG, 4) == 1


def test_a_pass_that_costs_little_beside_another_goes_there():
    late = (OnePass(0), OnePass(0, Perturbation(frozenset({46}))), OnePass(1))
    assert deal(late, 2, num_blocks=48) == (0, 0, 1)


def test_perturbed_passes_cost_less():
    plain, _, stg, isolated = (relative_cost(each.perturbation, num_blocks=48) for each in ALL)
    assert plain == 1 > stg > isolated


def test_traffic_of_the_full_model():
    """768x512, 121 frames: 6144 video and 126 audio tokens in bf16, by hand."""
    config = TransformerConfig.from_metadata({"transformer": LTX23})
    tokens = Pair(6144, 126)

    def of(shape: MeshShape, *passes: OnePass) -> Traffic:
        return step_traffic(shape, config, passes, tokens, bytes_per_value=2)

    assert of(MeshShape(), *ALL) == Traffic()
    x0 = (6144 + 126) * 128 * 2
    assert of(MeshShape(guidance=4), *ALL) == Traffic(guidance=3 * x0)

    # Twice the other half of 126 audio tokens' keys and values; all its queries, with fp32 results and 32 log-sum-exps.
    few = 2 * 63 * 2 * 2048 * 2 + 63 * (2048 * 2 + (2048 + 32) * 4)
    # Half of 3072 video tokens' queries, keys, values and results, 48 blocks.
    assert of(MeshShape(ulysses=2), OnePass(0)) == Traffic(ulysses=48 * (3072 * 4 * 4096 + few), gather=x0 // 2)
    # Keys and values of the other half.
    assert of(MeshShape(ring=2), OnePass(0)) == Traffic(ring=48 * (3072 * 2 * 4096 * 2 + few), gather=x0 // 2)

    isolated = of(MeshShape(ulysses=2), OnePass(0, ISOLATED))
    assert isolated.ulysses == 48 * (3072 * 4 * 4096 + 63 * 2 * 2048 * 2)
    assert of(MeshShape(guidance=2, ulysses=2), *ALL).guidance == 2 * x0
