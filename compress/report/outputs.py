"""The files of a report or a comparison, and how each is known as ours: by what it says of its origin."""

from collections.abc import Callable
from pathlib import Path

from compress.base.outputs import MADE_BY, Output, has_fields, read_content

REPORT = has_fields("headline", "scores", "retention", "compression")
COMPARISON = has_fields("headline", "scores", "labels", "compared")
MARK = "<!-- made by compress -->"
"""Ends a Markdown page."""
TITLE = " · compress report</title>"
"""Ends the title of an HTML page."""
_HEAD_CHARS = 4096


def page_outputs(folder: Path, stem: str, what: str, is_json: Callable[[Path], bool]) -> list[Output]:
    """STEM.json, STEM.md, STEM.html and flips.jsonl in a folder."""
    record = folder / f"{stem}.json"

    def is_markdown(path: Path) -> bool:
        content = read_content(record) if record.is_file() and is_json(record) else None
        from_before_marks = content is not None and MADE_BY not in content
        return from_before_marks or _text(path).rstrip().endswith(MARK)

    return [
        Output(record, what, is_json),
        Output(folder / "flips.jsonl", f"answers that flipped, of {what}", has_fields("task", "change")),
        Output(folder / f"{stem}.md", what, is_markdown),
        Output(folder / f"{stem}.html", what, lambda path: TITLE in _text(path)[:_HEAD_CHARS]),
    ]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
