"""Memory of a step beside the transformer's weights, counted from sizes.

Factors fitted to peaks on one H200 with fused attention: 2.6 GiB for a forward of 24576 video tokens, 0.8 for 6144, and
1.27 for a guided step of four passes at 6144.
"""

from __future__ import annotations

from ltxgen.models.transformer.config import TransformerConfig

# In parts of what the tokens take as hidden states. A block is at its widest in the feed-forward: its 4 C, the tokens
# before and after, modulated and normed ones, and the tables of RoPE beside them.
WIDEST = 13.5
# Of a pass that waits while another runs: its tokens before and after the block, and its velocities.
WAITING = 3


def hidden_bytes(config: TransformerConfig, video_tokens: int, audio_tokens: int, bytes_per_value: int) -> int:
    """The hidden states of one sample."""
    return (video_tokens * config.video.width + audio_tokens * config.audio.width) * bytes_per_value


def activation_bytes(hidden: int, num_passes: int, *, as_batch: bool) -> int:
    """The most that a step of `num_passes` holds at once, given the hidden states' bytes of one."""
    running = num_passes if as_batch else 1
    return int(hidden * (WIDEST * running + WAITING * (num_passes - running)))
