"""Fixtures of the training tests."""

from distill_world import base_world, options, text_file, world

__all__ = ["base_world", "options", "text_file", "world"]
