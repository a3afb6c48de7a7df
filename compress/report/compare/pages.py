"""compare.html and compare.md: the report's plot and tables, with a colour for each model."""

from html import escape

from compress.report.outputs import MARK
from compress.report.pages.curves import curves_section, number_style, numbered
from compress.report.pages.layout import alarms, chip, left_out, page, scores_section, tables
from compress.report.pages.markdown import head, markdown_table
from compress.report.pages.markdown import left_out as omissions
from compress.report.run_files import Record
from compress.report.tables.table import labels
from compress.report.tables.tables import all_tables

_NUMBERS_FIT = 4


def html_comparison(report: Record) -> str:
    """The comparison as one self-contained page."""
    numbers = {key: number for number, key in enumerate(labels(report), 1)}
    style = "".join(number_style(number, key) for key, number in numbers.items())
    names = numbered([(numbers[key], chip(key) + escape(label)) for key, label in labels(report).items()])
    header = (
        f'<header><p class="eyebrow">compress compare</p><h1>{escape(report["name"])}</h1>'
        f'<p class="lead">{escape(report["headline"])}</p>{alarms(report)}{names}</header>'
    )
    short = len(numbers) <= _NUMBERS_FIT and all(len(label) <= 8 for label in labels(report).values())
    missing = f"<section>{lines}</section>" if (lines := left_out(report)) else ""
    curves = curves_section(report["curves"], numbers)
    sections = [header, curves, scores_section(report, numbers=short), tables(report), missing]
    return page(report["name"], sections, style)


def markdown_comparison(report: Record) -> str:
    """The comparison as GitHub-flavoured Markdown."""
    parts = [*head(report), *(markdown_table(table) for table in all_tables(report)), *omissions(report)]
    return "\n\n".join([*parts, MARK]) + "\n"
