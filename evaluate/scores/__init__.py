"""From log-probabilities and text to scores."""
