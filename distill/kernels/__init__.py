"""Compiled passes over tiles of logits; `compress.distill.tiles` chooses between them and plain torch."""
