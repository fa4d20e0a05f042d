"""What Gemma 3 sees pictures with: a SigLIP tower, and the projection of what it sees to tokens of the text tower."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, Gemma3Config
from transformers.models.gemma3.modeling_gemma3 import Gemma3MultiModalProjector

from ltxgen.models.text_encoder.gemma import text_config


class GemmaVision(nn.Module):
    """Keys are `vision_tower.*`, without the `vision_model.` that files have in them, and `multi_modal_projector.*`.

    `config` is the config.json of Gemma3ForConditionalGeneration. Raises ValueError where it has no `vision_config`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        if not config.get("vision_config"):
            raise ValueError(
                "is a Gemma that sees no pictures (no `vision_config`): take one that does, or show it none with "
                "stages.enhance.image=false"
            )
        self.config = Gemma3Config(
            text_config=text_config(config),
            vision_config=dict(config["vision_config"]),
            mm_tokens_per_image=config.get("mm_tokens_per_image", 256),
        )
        tower = AutoModel.from_config(self.config.vision_config)
        self.vision_tower = getattr(tower, "vision_model", tower)  # transformers 4 has it one level down
        self.multi_modal_projector = Gemma3MultiModalProjector(self.config)

    def materialize_buffers(self, device: torch.device | str) -> None:
        """Compute the positions, which no file holds, on `device`; after construction on meta they have no values."""
        embeddings = self.vision_tower.embeddings
        with torch.inference_mode(False):
            positions = torch.arange(embeddings.num_positions, device=device)[None]
            embeddings.register_buffer("position_ids", positions, persistent=False)
