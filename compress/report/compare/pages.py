"""compare.html and compare.md: the report's plot and tables, with a colour for each model."""

from html import escape

from compress.report.outputs import MARK
from compress.report.pages.layout import alarms, chip, left_out, page, scores_section, tables
from compress.report.pages.markdown import head, markdown_table
from compress.report.pages.markdown import left_out as omissions
from compress.report.run_files import Record
from compress.report.tables.table import labels
from compress.report.tables.tables import all_tables

_COLOURS = ("#6b7280", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#8c564b")
_NUMBERS_FIT = 4


def html_comparison(report: Record) -> str:
    """The comparison as one self-contained page."""
    keys = list(labels(report))
    style = "".join(f".{key}{{--c:{_COLOURS[i % len(_COLOURS)]}}}" for i, key in enumerate(keys))
    names = "".join(
        f'<li class="{key}">{chip(key)}<b>{escape(label)}</b></li>' for key, label in labels(report).items()
    )
    header = (
        f'<header><p class="eyebrow">compress compare</p><h1>{escape(report["name"])}</h1>'
        f'<p class="lead">{escape(report["headline"])}</p>{alarms(report)}<ul class="key">{names}</ul></header>'
    )
    short = len(keys) <= _NUMBERS_FIT and all(len(label) <= 8 for label in labels(report).values())
    missing = f"<section>{lines}</section>" if (lines := left_out(report)) else ""
    return page(report["name"], [header, scores_section(report, numbers=short), tables(report), missing], style)


def markdown_comparison(report: Record) -> str:
    """The comparison as GitHub-flavoured Markdown."""
    parts = [*head(report), *(markdown_table(table) for table in all_tables(report)), *omissions(report)]
    return "\n\n".join([*parts, MARK]) + "\n"
