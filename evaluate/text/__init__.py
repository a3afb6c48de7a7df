"""Scores on held-out text: loss, fidelity to a teacher, by kind of token; samples to read."""
