"""Evaluations of a stage that make use of earlier ones, one kind a file, and the protocol they follow."""
