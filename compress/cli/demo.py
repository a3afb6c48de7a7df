"""`compress demo`: nothing in, the whole way on this machine out."""

from pathlib import Path

import click

from compress.cli.options import json_option, redo_option, set_option
from compress.cli.results import print_report


@click.command(short_help="The whole way in minutes: no network, no GPU.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True, help="Run folder."
)
@set_option
@redo_option
@json_option
def demo(out: Path, overrides: tuple[str, ...], redo: tuple[str, ...], as_json: bool) -> None:
    """The whole way on this machine in minutes: no network, no GPU, no model of your own."""
    from compress.demo import RECIPE
    from compress.run.pipeline import run_recipe
    from compress.run.recipe import load_recipe

    print_report(run_recipe(load_recipe(RECIPE, overrides), out, redo=redo), as_json)
