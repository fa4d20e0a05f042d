"""Noise schedules, one kind a file, and the protocol they follow."""
