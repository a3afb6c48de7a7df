"""The files of a report or a comparison, and how each is known as ours: by what it says of its origin."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from compress.base.outputs import MADE_BY, Output, has_fields, has_rows, read_object

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
        text = _text(path)
        return text.rstrip().endswith(MARK) or (is_json(record) and _is_from_before_marks(text, read_object(record)))

    return [
        Output(record, what, is_json),
        Output(folder / "flips.jsonl", f"answers that flipped, of {what}", has_rows("task", "change")),
        Output(folder / f"{stem}.md", what, is_markdown),
        Output(folder / f"{stem}.html", what, lambda path: TITLE in _text(path)[:_HEAD_CHARS]),
    ]


def _is_from_before_marks(text: str, content: dict[str, Any]) -> bool:
    """Whether a Markdown page belongs to the JSON file beside it, which is from when neither said its origin."""
    title = text.partition("\n")[0].replace("\\", "")
    return MADE_BY not in content and title == f"# {' '.join(str(content.get('name')).split())}"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
