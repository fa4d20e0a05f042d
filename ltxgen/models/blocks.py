"""Where large components keep their equal blocks, which hold nearly all of their weights."""

from __future__ import annotations

from collections.abc import Mapping

BLOCKS: Mapping[str, str] = {
    "transformer": "transformer_blocks",
    "audio_transformer": "transformer_blocks",
    "text_encoder": "model.layers",
}
"""Component -> its list of blocks, which run one after the other. They can be sharded, and streamed from the host; what
the components have beside them, and every other component, is small."""
