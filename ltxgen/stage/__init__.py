"""Stages: what a recipe is made of, one kind a file."""
