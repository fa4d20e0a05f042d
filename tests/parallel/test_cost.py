"""Predictions: counted work against published figures, and what follows from it for the choice of a mesh."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml

from ltxgen.artifacts.lora import linear_weights
from ltxgen.config.hardware import Hardware
from ltxgen.diffusion.pair import Pair
from ltxgen.guidance.protocol import Pass
from ltxgen.models.transformer import Perturbation, Transformer, TransformerConfig
from ltxgen.models.transformer.float8 import Float8Layers
from ltxgen.models.transformer.flops import block_parameters, linear_work, pass_flops
from ltxgen.parallel.auto import AutoConfig, meshes
from ltxgen.parallel.cost import CostModel, Work
from ltxgen.parallel.guidance import Tail
from ltxgen.parallel.shape import MeshShape

CONFIG = TransformerConfig.from_metadata(
    {
        "transformer": {
            "cross_attention_adaln": True,
            "apply_gated_attention": True,
            "caption_proj_before_connector": True,
            "av_ca_timestep_scale_multiplier": 1000.0,
        }
    }
)
H200 = Hardware("H200", 140, 790, 620, 4300, 300, 40)
BOTH = Pair(True, True)
GUIDED = (
    Pass("text", "positive", Perturbation(), BOTH),
    Pass("negative", "negative", Perturbation(), BOTH),
    Pass("stg", "positive", Perturbation(frozenset({28}), frozenset({28})), BOTH),
    Pass("isolated", "positive", Perturbation(isolate_modalities=True), BOTH),
)
TWO_STAGE = {
    "base": Work([GUIDED] * 30, Pair(6144, 126)),
    "refine": Work([GUIDED[:1]] * 3, Pair(24576, 126)),
}
COST = CostModel(CONFIG, TWO_STAGE, H200, ranks_per_machine=8)


@pytest.mark.parametrize(("tokens", "petaflops", "of_attention"), [(6144, 0.199, 0.030), (24576, 1.136, 0.475)])
def test_the_work_of_a_pass(tokens: int, petaflops: float, of_attention: float):
    counted = pass_flops(CONFIG, tokens, 126, 1024)
    assert counted.total / 1e15 == pytest.approx(petaflops, abs=5e-4)
    assert 4 * 48 * tokens**2 * 4096 / 1e15 == pytest.approx(of_attention, rel=0.02)


def test_linear_work_is_twice_the_weights_a_token():
    config = TransformerConfig.from_metadata({"transformer": {"num_layers": 1, "cross_attention_adaln": True}})
    with torch.device("meta"):
        block = Transformer(config).transformer_blocks[0]
    linear = sum(
        weight.numel() for name, weight in block.named_parameters() if weight.dim() == 2 and "table" not in name
    )
    assert block_parameters(config) == linear
    text_weights = 2 * sum(stream.context_dim * stream.width for stream in (config.video, config.audio))
    # With as many tokens of each kind every weight is used once a token.
    assert pass_flops(config, 100, 100, 100).linear == 2 * 100 * linear
    assert pass_flops(config, 100, 100, 0).linear == 2 * 100 * (linear - text_weights)


@pytest.fixture(scope="module")
def layers() -> dict[str, tuple[int, int]]:
    """The linear layers of the 22B model's blocks, by name."""
    with torch.device("meta"):
        weights = linear_weights(Transformer(CONFIG))
    return {name: shape for name, shape in weights.items() if name.startswith("transformer_blocks.")}


@pytest.mark.parametrize("tokens", [(6144, 126, 1024), (1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_layers_counted_one_by_one_are_the_work_of_a_pass(layers, tokens: tuple[int, int, int]):
    large = {name: shape for name, shape in layers.items() if not name.endswith((".to_gate_logits", "_table"))}
    counted = linear_work(large).weights
    assert 2 * counted.of(*tokens) == pass_flops(CONFIG, *tokens).linear
    assert sum(counted) == 48 * block_parameters(CONFIG)


@pytest.mark.parametrize(("tokens", "plain_ms", "float8_ms"), [(6144, 335, 248), (24576, 1873, 1488)])
def test_forwards_in_fp8_take_what_was_measured(layers, tokens: int, plain_ms: float, float8_ms: float):
    """One H200, compiled, with the layers and rates that are shipped."""
    folder = Path(__file__).parents[2] / "conf"
    hardware = Hardware(**yaml.safe_load((folder / "hardware/h200.yaml").read_text()))
    skip = tuple(yaml.safe_load((folder / "precision/fp8.yaml").read_text())["skip"])
    chosen = Float8Layers(skip).among(layers.items())
    plain = CostModel(CONFIG, TWO_STAGE, hardware)
    float8 = dataclasses.replace(plain, float8=linear_work({name: layers[name] for name in chosen}))
    assert 1000 * plain.forward_seconds(Pair(tokens, 126)) == pytest.approx(plain_ms, rel=0.05)
    assert 1000 * float8.forward_seconds(Pair(tokens, 126)) == pytest.approx(float8_ms, rel=0.08)
    # A byte less for each of their weights.
    weights = sum(rows * columns for rows, columns in (layers[name] for name in chosen))
    assert plain.memory_bytes(MeshShape()) - float8.memory_bytes(MeshShape()) == weights
    assert float8.forward_seconds(Pair(tokens, 126), 2) < float8.forward_seconds(Pair(tokens, 126)) / 1.8
    without_units = dataclasses.replace(float8, hardware=dataclasses.replace(hardware, fp8_tflops=None))
    assert without_units.forward_seconds(Pair(tokens, 126)) > plain.forward_seconds(Pair(tokens, 126))


def test_ranks_share_a_pass_but_not_its_text():
    whole, half = pass_flops(CONFIG, 6144, 126, 0), pass_flops(CONFIG, 6144, 126, 0, num_shards=2)
    assert half.linear == whole.linear / 2
    assert half.attention == whole.attention / 2
    text = pass_flops(CONFIG, 6144, 126, 1024).linear - whole.linear
    assert pass_flops(CONFIG, 6144, 126, 1024, num_shards=2).linear - half.linear == text


def test_guidance_over_four_ranks_is_the_dearest_pass():
    one, four = (COST.step(TWO_STAGE["base"], shape) for shape in (MeshShape(), MeshShape(guidance=4)))
    assert one.exchange == 0
    assert four.arithmetic == pytest.approx(COST.forward_seconds(Pair(6144, 126)))
    # Alone, the perturbed pass starts from the text pass's block 28; on ranks of their own each runs whole.
    assert one.arithmetic / four.arithmetic == pytest.approx(2 + 14 / 16 + (20 - 1 / 8) / 48)


def test_two_ranks_of_guidance_share_the_end_of_a_pass():
    """1.75 times one rank where passes are dealt whole; beside the shared blocks only their exchange is in the way."""
    base, two = TWO_STAGE["base"], MeshShape(guidance=2)
    assert COST.dealt(base, two).tail == Tail(3, 23)
    assert 1.9 < COST.step(base, MeshShape()).seconds / COST.step(base, two).seconds < 2
    whole = COST.step(base, two, sharded=True)
    assert COST.step(base, MeshShape()).arithmetic / whole.arithmetic == pytest.approx(3.289 / 1.875, rel=1e-3)


@pytest.mark.parametrize(
    "cost",
    [
        pytest.param(dataclasses.replace(COST, hardware=dataclasses.replace(H200, link_gbps=10)), id="slow link"),
        pytest.param(dataclasses.replace(COST, batched_tokens=6144), id="passes in a batch"),
    ],
)
def test_an_end_is_not_shared(cost: CostModel):
    assert cost.dealt(TWO_STAGE["base"], MeshShape(guidance=2)).tail is None


def test_an_end_is_not_shared_of_what_cannot_run_in_parts():
    base, two = TWO_STAGE["base"], MeshShape(guidance=2)
    assert COST.dealt(base, two, sharded=True).tail is None
    assert COST.dealt(dataclasses.replace(base, kept_hidden=2), two).tail is None
    assert COST.dealt(base, MeshShape(guidance=3)).tail is None  # 32 heads over 3 ranks


def test_a_slow_network_makes_ulysses_dear_and_the_ring_not():
    apart = dataclasses.replace(COST, ranks_per_machine=1)
    work, ulysses, ring = TWO_STAGE["refine"], MeshShape(ulysses=2), MeshShape(ring=2)
    assert apart.step(work, ulysses).exchange > 3 * COST.step(work, ulysses).exchange
    assert apart.step(work, ring).seconds < apart.step(work, ulysses).seconds


@pytest.mark.parametrize("num_ranks", [2, 3, 4, 6, 8, 16])
def test_auto_takes_the_fastest_mesh(num_ranks: int):
    choice = AutoConfig().choose(num_ranks, COST)
    assert choice.shape.num_ranks == num_ranks
    assert not choice.sharded
    fastest = min(COST.run_seconds(shape) for shape in meshes(num_ranks, 4, 32))
    assert COST.run_seconds(choice.shape) == fastest
    assert f"{fastest:.1f} s of denoising predicted on {num_ranks} H200" in choice.why[0]


def test_auto_leaves_one_rank_alone():
    choice = AutoConfig().choose(1, COST)
    assert (choice.shape, choice.sharded, choice.why) == (MeshShape(), False, ())


def test_weights_are_sharded_where_they_do_not_fit():
    small = dataclasses.replace(COST, hardware=dataclasses.replace(H200, memory_gib=24))
    choice = AutoConfig().choose(4, small)
    assert choice.sharded
    assert not small.fits(choice.shape)
    assert small.fits(choice.shape, sharded=True)
    assert "weights sharded" in choice.why[1]


def test_meshes_respect_passes_and_heads():
    found = meshes(8, num_passes=2, num_heads=4)
    assert MeshShape(guidance=2, ulysses=4) in found
    assert all(shape.num_ranks == 8 for shape in found)
    assert all(shape.guidance <= 2 and 4 % shape.ulysses == 0 for shape in found)
    assert len(found) == len(set(found)) == 6


def test_a_stage_is_the_sum_of_its_own_steps():
    """Steps that guidance skips cost nothing, and those with fewer passes less."""
    one = MeshShape()
    guided, plain = Work([GUIDED], Pair(6144, 126)), Work([GUIDED[:1]], Pair(6144, 126))
    mixed = Work([GUIDED, (), GUIDED, GUIDED[:1]], Pair(6144, 126))
    expected = 2 * COST.step(guided, one).seconds + COST.step(plain, one).seconds
    assert COST.stage_seconds(mixed, one) == pytest.approx(expected)
    assert COST.step(mixed, one).seconds == COST.step(guided, one).seconds  # the dearest
