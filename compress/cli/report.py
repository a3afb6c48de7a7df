"""`compress report`: a run folder in, its report out, again."""

from pathlib import Path

import click

from compress.base import processes
from compress.cli.options import json_option
from compress.cli.results import print_report


@click.command(short_help="Write the report of a run again.")
@click.argument("run_dir", type=click.Path(path_type=Path))
@json_option
def report(run_dir: Path, as_json: bool) -> None:
    """Write report.json, report.md and report.html of RUN_DIR from what its steps left there."""
    from compress.report import write_report

    processes.on_main(lambda: write_report(run_dir))
    print_report(run_dir, as_json)
