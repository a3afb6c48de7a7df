"""lm-eval's tasks on our forward passes: found, fed from local data, scored; and all that we change in lm-eval."""
