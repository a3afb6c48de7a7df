"""The command line: flags in, the same configs as a recipe out."""

from compress.cli.commands import cli, main

__all__ = ["cli", "main"]
