"""Attention backends, one a file, chosen by name or by `auto` for each role of the transformer."""

from ltxgen.attention.protocol import AttentionBackend, DeviceFacts, LseBackend, RoleAttention, RoleSpec

__all__ = ["AttentionBackend", "DeviceFacts", "LseBackend", "RoleAttention", "RoleSpec"]
