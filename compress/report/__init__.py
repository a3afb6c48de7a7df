"""Results on one page: report.json, report.md and report.html from a run folder."""

from pathlib import Path

from compress.base.disk import write_json, write_rows, write_text
from compress.base.outputs import Output, require_outputs
from compress.report.build import build_report
from compress.report.outputs import REPORT, page_outputs
from compress.report.pages.html import html_page
from compress.report.pages.markdown import markdown_page
from compress.report.pages.terminal import summary
from compress.report.run_files import read_run

__all__ = ["report_outputs", "summary", "write_report"]


def write_report(run: Path) -> Path:
    """Write RUN/report.json, report.md, report.html and flips.jsonl from the files in RUN; return the HTML page's path.

    Nothing is measured here, and the same files give the same bytes. Steps that have not run are left out and named.

    Raises:
        InputError: RUN does not exist, holds no evaluation, or one of its files cannot be read.
        UsageError: RUN/recipe.yaml is no recipe, or a file of the user's is where one of the report's goes.
    """
    files = read_run(run)
    report = build_report(files)
    flips = report["flips"].pop("all")
    require_outputs(*report_outputs(run))
    write_rows(run / "flips.jsonl", flips)
    write_text(run / "report.md", markdown_page(report, files))
    page = run / "report.html"
    write_text(page, html_page(report, files))
    write_json(run / "report.json", report)  # last: until then pages from before marks are known as ours by it
    return page


def report_outputs(run: Path) -> list[Output]:
    """The files of a run's report."""
    return page_outputs(run, "report", "a report", REPORT)
