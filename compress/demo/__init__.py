"""The embedded demo: a generated world of text, and the recipe that runs on it."""
