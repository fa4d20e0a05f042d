"""Samplers, one kind a file, and the protocol they follow."""
