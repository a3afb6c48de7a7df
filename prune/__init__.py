"""Step 1: a teacher checkpoint in, a student checkpoint with fewer layers out."""
