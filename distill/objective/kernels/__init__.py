"""Compiled passes over tiles of logits; `compress.distill.objective.tiles` chooses between them and plain torch."""
