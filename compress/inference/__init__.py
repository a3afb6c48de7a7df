"""Running a model without training it: prefixes shared, batches halved, log-probabilities read out."""
