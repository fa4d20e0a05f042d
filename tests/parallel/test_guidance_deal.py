"""Passes over ranks: balanced by cost, and traffic known from shapes."""

from __future__ import annotations

import itertools

import pytest

from ltxgen.diffusion.pair import Pair
from ltxgen.models.transformer import Perturbation, TransformerConfig
from ltxgen.parallel.guidance import deal, relative_cost
from ltxgen.parallel.shape import MeshShape
from ltxgen.parallel.traffic import Traffic, step_traffic

STG = Perturbation(frozenset({28}), frozenset({28}))
ISOLATED = Perturbation(isolate_modalities=True)
ALL = (Perturbation(), Perturbation(), STG, ISOLATED)
LTX23 = {
    "num_layers": 48,
    "cross_attention_adaln": True,
    "caption_proj_before_connector": True,
}


@pytest.mark.parametrize(
    ("num_passes", "num_ranks", "owners"),
    [(4, 1, (0, 0, 0, 0)), (4, 2, (0, 1, 0, 1)), (4, 3, (0, 1, 2, 2)), (4, 4, (0, 1, 2, 3)), (1, 4, (0,)), (0, 4, ())],
)
def test_deal(num_passes: int, num_ranks: int, owners: tuple[int, ...]):
    costs = [relative_cost(each, num_blocks=48) for each in ALL[:num_passes]]
    assert deal(costs, num_ranks) == owners


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_no_deal_is_shorter(num_ranks: int):
    costs = [relative_cost(each, num_blocks=48) for each in ALL]

    def longest(owners: tuple[int, ...]) -> float:
        return max(sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == r) for r in range(num_ranks))

    best = min(map(longest, itertools.product(range(num_ranks), repeat=len(costs))))
    assert longest(deal(costs, num_ranks)) == pytest.approx(best, abs=0.01)


def test_perturbed_passes_cost_less():
    plain, _, stg, isolated = (relative_cost(each, num_blocks=48) for each in ALL)
    assert plain == 1 > stg > isolated


def test_traffic_of_the_full_model():
    """768x512, 121 frames: 6144 video and 126 audio tokens in bf16, by hand."""
    config = TransformerConfig.from_metadata({"transformer": LTX23})
    tokens = Pair(6144, 126)

    def of(shape: MeshShape, *passes: Perturbation) -> Traffic:
        return step_traffic(shape, config, passes, tokens, bytes_per_value=2)

    assert of(MeshShape(), *ALL) == Traffic()
    x0 = (6144 + 126) * 128 * 2
    assert of(MeshShape(guidance=4), *ALL) == Traffic(guidance=3 * x0)

    # Half of 3072 video and 63 audio tokens' queries, keys, values and results, 48 blocks.
    halves = (3072 * 4 * 4096 + 63 * 4 * 2048 + 2 * (3072 + 63) * 2 * 2048) * 2 // 2
    assert of(MeshShape(ulysses=2), Perturbation()) == Traffic(ulysses=48 * halves, gather=x0 // 2)

    # Keys and values of the other half, for audio's attention to video queries and fp32 results with 32 log-sum-exps.
    moved = (3072 * 2 * 4096 + 2 * 63 * 2 * 2048) * 2 + 63 * (2048 * 2 + (2048 + 32) * 4)
    assert of(MeshShape(ring=2), Perturbation()) == Traffic(ring=48 * moved, gather=x0 // 2)

    isolated = of(MeshShape(ulysses=2), ISOLATED)
    assert isolated.ulysses == 48 * (3072 * 4 * 4096 + 63 * 4 * 2048)
    assert of(MeshShape(guidance=2, ulysses=2), *ALL).guidance == 2 * x0
