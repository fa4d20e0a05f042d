"""Attention backends: each is a function of (q, k, v, mask), chosen by name."""
