"""Scores on held-out text: loss, fidelity to a teacher, samples."""
