"""What a guidance pass leaves out of the transformer.

B batch
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Keep = bool | Tensor
"""Which samples run an attention: all (True), none (False), or those where a bool tensor (B, 1, 1) is true."""


@dataclass(frozen=True)
class Perturbation:
    """A weakened pass for guidance; the default leaves nothing out.

    Blocks are counted from 0. A skipped self attention passes its values through instead of attending (STG,
    https://arxiv.org/abs/2411.18664); isolated modalities do not attend to each other in any block.
    """

    skip_video_self_attention: frozenset[int] = frozenset()
    skip_audio_self_attention: frozenset[int] = frozenset()
    isolate_modalities: bool = False

    def agrees_until(self, other: "Perturbation", num_blocks: int) -> int:
        """The first block that leaves out something else than in `other`; `num_blocks` if there is none."""
        if self.isolate_modalities != other.isolate_modalities:
            return 0
        video = self.skip_video_self_attention ^ other.skip_video_self_attention
        audio = self.skip_audio_self_attention ^ other.skip_audio_self_attention
        return min(video | audio, default=num_blocks)


class BlockPerturbation(NamedTuple):
    """What is left of one block."""

    video_self: Keep = True
    audio_self: Keep = True
    across: Keep = True


def per_block(samples: Sequence[Perturbation], blocks: range, device: torch.device) -> list[BlockPerturbation]:
    """Spell the perturbation of each sample, or a single one for all, out for `blocks`."""
    across = _keep([sample.isolate_modalities for sample in samples], device)
    return [
        BlockPerturbation(
            video_self=_keep([block in sample.skip_video_self_attention for sample in samples], device),
            audio_self=_keep([block in sample.skip_audio_self_attention for sample in samples], device),
            across=across,
        )
        for block in blocks
    ]


def _keep(skipped: list[bool], device: torch.device) -> Keep:
    if len(set(skipped)) == 1:
        return not skipped[0]
    return _keep_tensor(tuple(skipped), device)


@functools.cache
def _keep_tensor(skipped: tuple[bool, ...], device: torch.device) -> Tensor:
    # Made once: copying it to a GPU waits for that. Outside of inference mode, so that any later use may have it.
    with torch.inference_mode(False):
        return ~torch.tensor(skipped, device=device)[:, None, None]
