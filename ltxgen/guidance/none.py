"""No guidance: one pass with the positive prompt, for distilled weights and every refining stage."""

from __future__ import annotations

from dataclasses import dataclass

from ltxgen.config.errors import Problem
from ltxgen.diffusion.numerics import Numerics
from ltxgen.guidance.multimodal import MultimodalConfig, MultimodalGuidance
from ltxgen.registry import register


@register("guidance", "none")
@dataclass(frozen=True)
class NoneConfig:
    """Nothing to choose."""

    def build(self, numerics: Numerics) -> MultimodalGuidance:
        return MultimodalConfig().build(numerics)

    def problems(self, path: str, num_blocks: int) -> list[Problem]:
        return []
