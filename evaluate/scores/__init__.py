"""From log-probabilities and text to scores: of an item, a task, a group, and of how a model answers."""
