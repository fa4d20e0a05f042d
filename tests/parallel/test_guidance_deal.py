"""Passes over ranks: balanced by cost, and traffic known from shapes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from ltxgen.diffusion.pair import Pair
from ltxgen.models.transformer import Perturbation, TransformerConfig
from ltxgen.parallel.guidance import Deal, Tail, deal, forks_of, relative_cost
from ltxgen.parallel.shape import MeshShape
from ltxgen.parallel.traffic import Traffic, step_traffic, tail_traffic

STG = Perturbation(frozenset({28}), frozenset({28}))
ISOLATED = Perturbation(isolate_modalities=True)
PLAIN = Perturbation()


@dataclass(frozen=True)
class OnePass:
    context: int
    perturbation: Perturbation = PLAIN


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
    assert deal(ALL[:num_passes], num_ranks, num_blocks=48) == Deal(owners)


def test_stg_starts_from_the_text_pass_where_it_parts_from_it():
    assert forks_of(ALL, 48) == [(0, 0), (1, 0), (0, 28), (3, 0)]
    assert forks_of(ALL[2:], 48) == [(0, 0), (1, 0)]  # without the text pass it runs whole
    assert relative_cost(STG, 48, range(28, 48)) == pytest.approx((20 - 1 / 8) / 48)


def test_a_block_that_the_transformer_lacks_saves_nothing():
    """Such a guidance is refused; a plan says what else is wrong with the run, and predicts no negative time."""
    assert forks_of(ALL, 4)[2] == (0, 28)
    assert relative_cost(STG, 4, range(28, 4)) == 0
    assert relative_cost(STG, 4, range(4)) == 1


def test_a_pass_that_costs_little_beside_another_goes_there():
    late = (OnePass(0), OnePass(0, Perturbation(frozenset({46}))), OnePass(1))
    assert deal(late, 2, num_blocks=48).owners == (0, 0, 1)


def test_perturbed_passes_cost_less():
    plain, _, stg, isolated = (relative_cost(each.perturbation, 48, range(48)) for each in ALL)
    assert plain == 1 > stg > isolated


def test_what_one_rank_has_too_much_is_shared_at_the_end():
    """Two ranks: 1.41 passes and 1.88. The later ends of the second rank's passes would come out even from 1.65 on."""
    dealt = deal(ALL, 2, num_blocks=48, share_tail=True)
    assert dealt == Deal((0, 1, 0, 1), Tail(3, 23))
    assert (dealt.whole(0), dealt.whole(1)) == ([0, 2], [1])
    assert [dealt.blocks(number, 48).stop for number in range(4)] == [48, 48, 48, 23]
    own, tail = dealt.load
    assert tail == pytest.approx(25 * 7 / 8 / 48)
    assert own == pytest.approx(1 + 23 * 7 / 8 / 48)  # the other rank has a hundredth less
    assert own + tail / 2 < 1.65


def test_a_step_of_one_pass_is_shared_whole():
    dealt = deal(ALL[:1], 2, num_blocks=48, share_tail=True)
    assert dealt == Deal((0,), Tail(0, 0))
    assert dealt.load == (0, 1)


def test_a_pass_that_another_starts_from_is_not_cut():
    """On three ranks the text pass and what starts from it are the most; the latter's end can be shared alone."""
    dealt = deal(ALL, 3, num_blocks=48, share_tail=True)
    assert dealt.owners == (0, 1, 0, 2)
    assert dealt.tail == Tail(2, 28)


def test_four_ranks_with_a_pass_each_share_nothing():
    assert deal(ALL, 4, num_blocks=48, share_tail=True).tail is None


def test_traffic_of_the_full_model():
    """768x512, 121 frames: 6144 video and 126 audio tokens in bf16, by hand."""
    config = TransformerConfig.from_metadata({"transformer": LTX23})
    tokens = Pair(6144, 126)

    def of(shape: MeshShape, *passes: OnePass) -> Traffic:
        return step_traffic(shape, config, passes, tokens, 2, deal(passes, shape.guidance, 48))

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

    # The second rank hands over hidden states of both streams before block 23 and gets the first one's two results.
    dealt = deal(ALL, 2, 48, share_tail=True)
    handed_over = (6144 * 4096 + 126 * 2048) * 2
    assert step_traffic(MeshShape(guidance=2), config, ALL, tokens, 2, dealt) == Traffic(guidance=handed_over + x0)
    assert dealt.tail is not None
    tail = tail_traffic(MeshShape(ulysses=2), config, ALL, tokens, 2, dealt.tail)
    assert tail == Traffic(ulysses=25 * (3072 * 4 * 4096 + 63 * 2 * 2048 * 2), gather=x0 // 2)
