"""The command line: flags in, the same configs as a recipe out.

A file a command; `main` gathers them, `flags` makes options of config fields, `options` has those that commands share,
`results` prints what a command found, `exits` says what ended it.
"""

from compress.cli.main import cli, main

__all__ = ["cli", "main"]
