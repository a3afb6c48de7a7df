"""The parts that every HTML page is laid out with: the page itself, sections, tables, the list of alarms."""

from collections.abc import Sequence
from html import escape
from importlib.resources import files

from compress.report.judge.verdicts import alarm_lines
from compress.report.outputs import TITLE
from compress.report.pages import svg
from compress.report.pages.figures import marker, scores_figure
from compress.report.run_files import Record
from compress.report.tables.table import Table
from compress.report.tables.tables import all_tables


def page(title: str, sections: Sequence[str], extra_style: str = "") -> str:
    """A self-contained page of those sections that are not empty."""
    style = files("compress.report.pages").joinpath("page.css").read_text(encoding="utf-8") + extra_style
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}{TITLE}<style>{style}</style>"
    )
    body = "\n".join(section for section in sections if section)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>\n{body}\n</main></body></html>\n'


def alarms(report: Record) -> str:
    """What a reader must know before the scores, as a list; empty when there is nothing."""
    lines = "".join(f"<li>{escape(line)}</li>" for line in alarm_lines(report))
    return f'<ul class="alarms">{lines}</ul>' if lines else ""


def left_out(report: Record) -> str:
    """What is not on the page, as a list; empty when nothing is missing."""
    lines = "".join(f"<li>{escape(line)}</li>" for line in report["left_out"])
    return f"<h3>Not in this report</h3><ul>{lines}</ul>" if lines else ""


def scores_section(report: Record, *, numbers: bool = True) -> str:
    """The picture of all scores."""
    picture = scores_figure(report, numbers=numbers)
    caption = (
        "Percent, with 95% intervals. The dashed line is what guessing scores; "
        "a hollow mark cannot be told from guessing, lies below it, or is one answer given to everything."
    )
    return section("What it can do", caption, f'<div class="wide">{picture}</div>') if picture else ""


def chip(key: str) -> str:
    """A model's mark, for legends."""
    return svg.element("svg", marker(key, 7, 7, f"mark {key}"), viewBox="0 0 14 14", class_="chip", aria_hidden="true")


def section(title: str, caption: str, body: str) -> str:
    """A heading, a sentence and what it is about."""
    return f"<section><h2>{escape(title)}</h2><p class='caption'>{escape(caption)}</p>{body}</section>"


def tables(report: Record) -> str:
    """All tables of a report."""
    return "\n".join(table_section(table) for table in all_tables(report))


def table_section(table: Table) -> str:
    """A table with its heading and the sentence on how to read it."""

    def row(cells: Sequence[str], tag: str) -> str:
        kinds = [' class="words"' if left else "" for left in table.words]
        made = (f"<{tag}{kind}>{escape(text)}</{tag}>" for text, kind in zip(cells, kinds, strict=True))
        return f"<tr>{''.join(made)}</tr>"

    rows = "".join(row(cells, "td") for cells in table.rows)
    narrow = ' class="narrow"' if len(table.columns) == 2 else ""
    grid = (
        f'<div class="wide"><table{narrow}><thead>{row(table.columns, "th")}</thead><tbody>{rows}</tbody></table></div>'
    )
    if table.folded:
        grid = f"<details><summary>{len(table.rows)} rows</summary>{grid}</details>"
    return section(table.title, table.note, grid)
