"""The LTX-2 / LTX-2.3 audio-video transformer, in its official parameter names."""

from ltxgen.models.transformer.attention import Attention, AttentionByRole, AttentionFunction, sdpa
from ltxgen.models.transformer.block import TransformerBlock
from ltxgen.models.transformer.config import StreamConfig, TransformerConfig
from ltxgen.models.transformer.inputs import BlockInputs, Hidden, ModalityInput, StreamInputs
from ltxgen.models.transformer.model import PassesModel, Transformer, Velocities
from ltxgen.models.transformer.passes import Fork, Shortcut, TransformerPass, batch_limit, forks
from ltxgen.models.transformer.perturbation import BlockPerturbation, Perturbation
from ltxgen.models.transformer.sound import is_for_sound, without_video

__all__ = [
    "Attention",
    "AttentionByRole",
    "AttentionFunction",
    "BlockInputs",
    "BlockPerturbation",
    "Fork",
    "Hidden",
    "ModalityInput",
    "PassesModel",
    "Perturbation",
    "Shortcut",
    "StreamConfig",
    "StreamInputs",
    "Transformer",
    "TransformerBlock",
    "TransformerConfig",
    "TransformerPass",
    "Velocities",
    "batch_limit",
    "forks",
    "is_for_sound",
    "sdpa",
    "without_video",
]
