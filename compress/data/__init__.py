"""Text in, a token store out: sources, preparation, reading."""
