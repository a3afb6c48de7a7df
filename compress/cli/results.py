"""A command's result on stdout: a text, a table, or with `--json` one JSON object. Messages go to stderr."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from compress.base import processes

_NO_FOLDING = 10_000  # columns


def print_result(record: Any, text: str, as_json: bool) -> None:
    """Print `record` as JSON, or else `text`, from the main process."""
    if processes.is_main():
        click.echo(json.dumps(record, ensure_ascii=False) if as_json else text)


def print_summary(report: dict[str, Any], as_json: bool) -> None:
    """Print a report, as JSON or as a table, from the main process. Outside a terminal the table is plain text, no
    wider than it must be and never folded."""
    if as_json or not processes.is_main():
        print_result(report, "", as_json)
        return
    from rich.console import Console

    from compress.report import summary

    terminal = sys.stdout.isatty()
    console = Console(highlight=False, force_terminal=terminal, width=None if terminal else _NO_FOLDING)
    console.print(summary(report))


def print_report(run_dir: Path, as_json: bool) -> None:
    """Print the report that a run ended with, and say where its page is."""
    from compress.base.disk import read_json
    from compress.base.progress import say

    if processes.is_main():
        print_summary(read_json(run_dir / "report.json"), as_json)
        if not as_json:
            say(f"The report: {run_dir / 'report.html'}")


def print_sweep(folder: Path, as_json: bool) -> None:
    """Print what a sweep found, and say where its page is."""
    from compress.base.disk import read_json
    from compress.base.progress import say

    report = read_json(folder / "sweep.json")
    print_result(report, report["headline"], as_json)
    if not as_json:
        say(f"The sweep: {folder / 'sweep.html'}")
