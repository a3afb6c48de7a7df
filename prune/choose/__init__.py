"""Which layers stay: by name, by measure, by candidates for a trial."""
