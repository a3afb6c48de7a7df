"""The training loop and what it holds: steps, optimizer, checkpoints, metrics."""
