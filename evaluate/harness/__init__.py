"""lm-eval's tasks, scored with our forward passes."""
