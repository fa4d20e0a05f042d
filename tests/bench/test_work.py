"""Counted work against torch's own count of what the modules do, and what passes share."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ltxgen.artifacts.synthetic import architecture
from ltxgen.bench.ceilings import Ceilings
from ltxgen.bench.work import PLAIN, milliseconds, step_flops
from ltxgen.diffusion.pair import Pair
from ltxgen.guidance.protocol import Pass
from ltxgen.models.transformer import ModalityInput, Perturbation, Transformer, TransformerConfig
from ltxgen.models.transformer.flops import Flops

FULL = TransformerConfig.from_metadata(architecture("ltx23_22b")["checkpoint"])
CONFIG = replace(FULL, num_layers=4)
TOKENS, TEXT_TOKENS = Pair(6144, 126), 1024
BOTH = Pair(True, True)
LAST = frozenset({3})
NEGATIVE = Pass("negative", "negative", Perturbation(), BOTH)
STG = Pass("stg", "positive", Perturbation(LAST, LAST), BOTH)
ISOLATED = Pass("isolated", "positive", Perturbation(isolate_modalities=True), BOTH)


def counted_by_torch(perturbation: Perturbation) -> int:
    """Operations of one pass, on tensors without memory."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = Transformer(CONFIG).eval()

        def modality(stream, tokens, axes):
            level = torch.empty(1)
            latents, positions = torch.empty(1, tokens, stream.in_channels), torch.empty(1, axes, tokens, 2)
            text = torch.empty(1, TEXT_TOKENS, stream.context_dim)
            return ModalityInput(latents, level[:, None], level, positions, text)

        model(modality(CONFIG.video, TOKENS.video, 3), modality(CONFIG.audio, TOKENS.audio, 1), perturbation)
    return counter.get_total_flops()


def step(*passes: Pass) -> Flops:
    return step_flops(CONFIG, passes, TOKENS, TEXT_TOKENS)


def keys_and_values(config: TransformerConfig) -> Flops:
    """Of one prompt in all blocks."""
    widths = sum(stream.context_dim * stream.width for stream in (config.video, config.audio))
    return Flops(2 * TEXT_TOKENS * 2 * widths * config.num_layers)


@pytest.mark.parametrize("each", [PLAIN, STG, ISOLATED], ids=lambda each: each.name)
def test_one_pass_is_what_torch_counts(each):
    # Gates and what lies around the blocks are left out.
    assert step(each).total == pytest.approx(counted_by_torch(each.perturbation), rel=5e-3)
    assert step(each).total <= counted_by_torch(each.perturbation)


def test_another_prompt_shares_nothing():
    assert step(PLAIN, NEGATIVE) == step(PLAIN).plus(step(NEGATIVE))


def test_passes_with_the_same_prompt_share_its_keys_and_values():
    assert step(PLAIN, ISOLATED) == step(PLAIN).plus(step(ISOLATED)).plus(keys_and_values(CONFIG), -1)
    assert step(NEGATIVE, ISOLATED) == step(NEGATIVE).plus(step(ISOLATED))


def test_a_perturbed_pass_starts_where_it_differs():
    first = frozenset({0})
    one_block = replace(CONFIG, num_layers=1)
    alone = step_flops(one_block, [Pass("stg", "positive", Perturbation(first, first), BOTH)], TOKENS, TEXT_TOKENS)
    assert step(PLAIN, STG) == step(PLAIN).plus(alone).plus(keys_and_values(one_block), -1)
    # Nothing to start from where only another prompt's pass comes before.
    assert step(NEGATIVE, STG) == step(NEGATIVE).plus(step(STG))


def test_a_floor_in_milliseconds():
    ceilings = Ceilings({"bfloat16": 8e14}, 5e14, "sdpa", 4e12, ())
    assert milliseconds(Flops(8 * 10**14, 10**15), ceilings, "bfloat16") == pytest.approx(3000)
    assert milliseconds(Flops(1), ceilings, "float8") is None
