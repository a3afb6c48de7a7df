"""report.md: the page's words and tables, for a terminal or a repository."""

import re

from compress.report.cells import layer_ranges
from compress.report.judge.verdicts import alarm_lines
from compress.report.outputs import MARK
from compress.report.pages.extracts import manifest_blocks, sample_rows
from compress.report.run_files import Record, RunFiles, layers_of
from compress.report.tables.table import Table, labels
from compress.report.tables.tables import all_tables

_FENCE = "````"


def markdown_page(report: Record, run: RunFiles) -> str:
    """The report as GitHub-flavoured Markdown."""
    parts = head(report)
    if (layers := report["prune"]) and layers.get("kept_layers") is not None:
        kept, dropped = map(layer_ranges, layers_of(layers))
        parts.append(f"Kept layers: {kept or 'none'}. Dropped layers: {dropped or 'none'}.")
    parts += [markdown_table(table) for table in all_tables(report)]
    parts += _samples(report)
    parts += left_out(report)
    parts.append("## Manifest\n")
    for title, body, language in manifest_blocks(run):
        block = f"{_FENCE}{language}\n{body}\n{_FENCE}"
        parts.append(f"<details><summary>{plain(title)}</summary>\n\n{block}\n\n</details>")
    return "\n\n".join([*parts, MARK]) + "\n"


def head(report: Record) -> list[str]:
    """Name, headline, and what a reader must know before the scores."""
    lines = [f"- **Caution.** {plain(line)}" for line in alarm_lines(report)]
    return [f"# {plain(report['name'])}", plain(report["headline"]), *(["\n".join(lines)] if lines else [])]


def left_out(report: Record) -> list[str]:
    """What is not on the page, in words."""
    lines = "\n".join(f"- {plain(line)}" for line in report["left_out"])
    return [f"## Not in this report\n\n{lines}"] if lines else []


def plain(text: str) -> str:
    """Text that Markdown shows as it is; underscores inside words and lone brackets need no escape and stay legible."""
    return re.sub(r"[\\`*<>|#&]|(?<![^\W_])_|_(?![^\W_])|\](?=[(\[:])", r"\\\g<0>", " ".join(text.split()))


def markdown_table(table: Table) -> str:
    """A heading, a sentence and the table."""
    rule = [":--" if words else "--:" for words in table.words]
    lines = [[plain(cell) for cell in row] for row in (table.columns, *table.rows)]
    body = "\n".join("| " + " | ".join(row) + " |" for row in (lines[0], rule, *lines[1:]))
    heading = f"## {table.title}\n\n{plain(table.note)}"
    if table.folded:
        return f"{heading}\n\n<details><summary>{len(table.rows)} rows</summary>\n\n{body}\n\n</details>"
    return f"{heading}\n\n{body}"


def _samples(report: Record) -> list[str]:
    rows = sample_rows(report)
    if not rows:
        return []
    parts = ["## Sample continuations"]
    for prompt, texts in rows:
        lines = [f"- **{label}**: {plain(texts[key])}" for key, label in labels(report).items() if key in texts]
        parts.append(f"> {plain(prompt)}\n\n" + "\n".join(lines))
    return parts
