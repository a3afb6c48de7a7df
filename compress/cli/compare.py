"""`compress compare`: evaluations in, a table of them side by side out."""

from pathlib import Path

import click

from compress.base import processes
from compress.cli.options import json_option
from compress.cli.results import print_summary


@click.command(short_help="Set evaluated models side by side.")
@click.argument("models", nargs=-1, required=True, metavar="A [B ...]")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write compare.html, .md and .json to.")
@json_option
def compare(models: tuple[str, ...], out: Path | None, as_json: bool) -> None:
    """Set evaluated models side by side, each against the first, with intervals and paired tests.

    A and B are eval JSONs or run folders; NAME=A gives one a name.
    """
    from compress.base.progress import say
    from compress.report.compare import compare_models

    print_summary(processes.on_main(lambda: compare_models(models, out)), as_json)
    if out is not None and not as_json:
        say(f"The comparison: {out / 'compare.html'}")
