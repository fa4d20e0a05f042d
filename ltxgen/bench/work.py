"""What the passes of a step have to compute: with the ceilings, a floor in milliseconds.

Matrix products and attention count. Norms, modulation and RoPE move memory and are left out, so the floor is one for
perfect fusion.
"""

from __future__ import annotations

from collections.abc import Sequence

from ltxgen.bench.ceilings import Ceilings
from ltxgen.diffusion.pair import Pair
from ltxgen.guidance.protocol import Pass
from ltxgen.models.transformer import Perturbation, TransformerConfig
from ltxgen.models.transformer.flops import Flops, pass_flops
from ltxgen.parallel.guidance import forks_of

PLAIN = Pass("text", "positive", Perturbation(), Pair(True, True))


def step_flops(config: TransformerConfig, passes: Sequence[Pass], tokens: Pair[int], text_tokens: int) -> Flops:
    """What the passes of one step can't do without, given that they see the same latents and timesteps.

    A pass that is another one up to some block starts there, and passes with the same contexts share their keys and
    values.
    """
    shared = [fork.block for fork in forks_of(passes, config.num_layers)]
    total = Flops()
    for each, num_shared in zip(passes, shared, strict=True):
        across = not each.perturbation.isolate_modalities
        whole = pass_flops(config, tokens.video, tokens.audio, text_tokens, across=across)
        block = Flops(whole.linear // config.num_layers, whole.attention // config.num_layers)
        total = total.plus(block, config.num_layers - num_shared)
        total = total.plus(_skipped(config, each.perturbation, tokens), -1)
    repeated = (len(passes) - len({each.context for each in passes})) * config.num_layers - sum(shared)
    return total.plus(_text_keys_and_values(config, text_tokens), -repeated)


def milliseconds(flops: Flops, ceilings: Ceilings, dtype: str) -> float | None:
    """The least time on a machine with these ceilings; None if its matrix rate in `dtype` was not measured."""
    rate = ceilings.gemm.get(dtype)
    return None if rate is None else 1000 * (flops.linear / rate + flops.attention / ceilings.attention)


def _skipped(config: TransformerConfig, perturbation: Perturbation, tokens: Pair[int]) -> Flops:
    """The self attention that a pass leaves out, with its queries and keys."""
    assert tokens.video is not None
    assert tokens.audio is not None
    total = Flops()
    for stream, count, skipped in (
        (config.video, tokens.video, perturbation.skip_video_self_attention),
        (config.audio, tokens.audio, perturbation.skip_audio_self_attention),
    ):
        queries_and_keys = 2 * 2 * count * stream.width**2
        total = total.plus(Flops(queries_and_keys, 4 * count * count * stream.width), len(skipped))
    return total


def _text_keys_and_values(config: TransformerConfig, text_tokens: int) -> Flops:
    """Of one prompt in one block."""
    streams = (config.video, config.audio)
    return Flops(sum(2 * 2 * text_tokens * stream.context_dim * stream.width for stream in streams))
