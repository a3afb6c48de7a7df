"""What the models are fed: rows of a token store, documents kept apart, read ahead."""
