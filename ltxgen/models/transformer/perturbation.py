"""What a guidance pass leaves out of the transformer.

B batch
"""

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

    @property
    def first_block(self) -> int | None:
        """The first block whose result differs from an unperturbed pass, None if there is none."""
        if self.isolate_modalities:
            return 0
        return min(self.skip_video_self_attention | self.skip_audio_self_attention, default=None)


class BlockPerturbation(NamedTuple):
    """What is left of one block."""

    video_self: Keep = True
    audio_self: Keep = True
    across: Keep = True


def per_block(
    perturbation: Perturbation | Sequence[Perturbation], blocks: range, device: torch.device
) -> list[BlockPerturbation]:
    """Spell a perturbation, of the whole batch or one a sample, out for `blocks`."""
    samples = (perturbation,) if isinstance(perturbation, Perturbation) else tuple(perturbation)
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
    return ~torch.tensor(skipped, device=device)[:, None, None]
