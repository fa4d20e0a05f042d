"""Counted work against torch's own count of what the modules do."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ltxgen.artifacts.synthetic import architecture
from ltxgen.bench.ceilings import Ceilings
from ltxgen.bench.work import PLAIN, Work, step_work
from ltxgen.diffusion.pair import Pair
from ltxgen.guidance.protocol import Pass
from ltxgen.models.transformer import ModalityInput, Perturbation, Transformer, TransformerConfig

FULL = TransformerConfig.from_metadata(architecture("ltx23_22b")["checkpoint"])
TINY = TransformerConfig.from_metadata(architecture("ltx23_tiny")["checkpoint"])
LTX2 = replace(TINY, caption_channels=24, cross_attention_adaln=False, prompt_adaln=False, gated_attention=False)
TOKENS, TEXT_TOKENS = Pair(12, 9), 7
BOTH = Pair(True, True)


def passes(config: TransformerConfig) -> dict[str, Pass]:
    last = frozenset({config.num_layers - 1})
    return {
        "text": PLAIN,
        "negative": Pass("negative", "negative", Perturbation(), BOTH),
        "stg": Pass("stg", "positive", Perturbation(last, last), BOTH),
        "isolated": Pass("isolated", "positive", Perturbation(isolate_modalities=True), BOTH),
    }


def counted_by_torch(config: TransformerConfig, perturbation: Perturbation = Perturbation()) -> int:  # noqa: B008
    """Operations of one pass, on tensors without memory."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = Transformer(config).eval()

        def modality(stream, tokens, axes):
            text = config.caption_channels or stream.context_dim
            level = torch.empty(1)
            latents, positions = torch.empty(1, tokens, stream.in_channels), torch.empty(1, axes, tokens, 2)
            return ModalityInput(latents, level[:, None], level, positions, torch.empty(1, TEXT_TOKENS, text))

        model(modality(config.video, TOKENS.video, 3), modality(config.audio, TOKENS.audio, 1), perturbation)
    return counter.get_total_flops()


@pytest.mark.parametrize("config", [TINY, LTX2, replace(FULL, num_layers=1)], ids=["tiny", "ltx2", "22b"])
def test_a_forward_is_what_torch_counts(config):
    assert step_work(config, [PLAIN], TOKENS, TEXT_TOKENS).total == counted_by_torch(config)


@pytest.mark.parametrize("name", ["stg", "isolated"])
def test_a_perturbed_pass_by_itself_is_what_torch_counts(name):
    each = passes(TINY)[name]
    assert step_work(TINY, [each], TOKENS, TEXT_TOKENS).total == counted_by_torch(TINY, each.perturbation)


def test_a_pass_that_starts_as_another_costs_its_last_blocks_only():
    every = passes(TINY)
    alone = step_work(TINY, [every["text"]], TOKENS, TEXT_TOKENS)
    with_stg = step_work(TINY, [every["text"], every["stg"]], TOKENS, TEXT_TOKENS)
    with_negative = step_work(TINY, [every["text"], every["negative"]], TOKENS, TEXT_TOKENS)
    assert TINY.num_layers > 2
    assert 0 < with_stg.total - alone.total < 1.1 * alone.total / TINY.num_layers
    # Another prompt shares nothing but what comes before the blocks.
    assert 0.9 < (with_negative.total - alone.total) / alone.total < 1


def test_full_size():
    """Counted by hand: 0.199 PFLOP at 768x512x121; 1.136 at 1536x1024x121, of it 0.475 for video self attention."""
    small = step_work(FULL, [PLAIN], Pair(6144, 126), 1024)
    large = step_work(FULL, [PLAIN], Pair(24576, 126), 1024)
    assert small.total / 1e15 == pytest.approx(0.199, abs=0.0005)
    assert large.total / 1e15 == pytest.approx(1.136, abs=0.001)
    assert 0.475 < large.attention / 1e15 < 0.5


def test_a_floor_in_milliseconds():
    ceilings = Ceilings({"bfloat16": 8e14}, 5e14, "sdpa", 4e12, ())
    assert Work(gemm=8 * 10**14, attention=10**15).milliseconds(ceilings, "bfloat16") == pytest.approx(3000)
    assert Work(gemm=1).milliseconds(ceilings, "float8") is None
