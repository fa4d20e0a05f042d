"""Composition, validation and refusals."""
