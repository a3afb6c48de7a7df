"""The page of a sweep: all students' curves in one plot, a table with intervals and paired differences, the winner."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.base.disk import write_json, write_text
from compress.base.outputs import Output, has_fields
from compress.report.outputs import page_outputs
from compress.report.sweep.build import build_sweep
from compress.report.sweep.pages import html_sweep, markdown_sweep

__all__ = ["sweep_outputs", "write_sweep"]


def write_sweep(folder: Path, cases: Sequence[tuple[str, str, Mapping[str, Any]]], failed: Mapping[str, str]) -> Path:
    """Write sweep.json, sweep.md and sweep.html from the runs in `folder`/runs; return the HTML page's path.

    A case is its name, its folder, and the keys of the recipe that it changes; `failed` says of some why they have no
    student. Nothing is measured here.

    Raises:
        InputError: a run's file cannot be read.
    """
    report = build_sweep(folder, cases, failed)
    write_text(folder / "sweep.md", markdown_sweep(report))
    page = folder / "sweep.html"
    write_text(page, html_sweep(report))
    write_json(folder / "sweep.json", report)
    return page


def sweep_outputs(folder: Path) -> list[Output]:
    """The files of a sweep's page."""
    outputs = page_outputs(folder, "sweep", "a sweep", has_fields("headline", "cases", "winner"))
    return [output for output in outputs if output.path.stem == "sweep"]
