"""A table as plain text cells, and the few facts of a report that every table and figure asks for."""

from collections.abc import Sequence
from dataclasses import dataclass

from compress.report.run_files import Record

_REMARKS = ("Not above chance", "Measured on", "What it says")


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A title, a sentence on how to read it, column names and rows of text; the first `text_columns` hold words."""

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1
    folded: bool = False

    @property
    def words(self) -> list[bool]:
        """By column: whether it holds words, set to the left, and not numbers."""
        return [index < self.text_columns or name in _REMARKS for index, name in enumerate(self.columns)]


def labels(report: Record) -> dict[str, str]:
    """Key of each evaluated model -> the name used for it on every page and in every figure; the reference first."""
    found: dict[str, str] = report["labels"]
    return found


def retold(report: Record) -> bool:
    """Whether the models have not all one tokenizer, so that of their losses only bits per byte can be compared."""
    return any("teacher_heldout" in report[key] for key in labels(report))


def compared(report: Record) -> dict[str, dict[str, Record]]:
    """Model key -> its comparison with the reference by task, of each model that has one."""
    if "compared" in report:
        return dict(report["compared"])
    tables = {"student_init": report["retention_student_init"], "student": report["retention"]}
    return {key: table for key, table in tables.items() if table}


def main_tasks(report: Record) -> dict[str, Record]:
    """Scores of the tasks that are no part of a reported group."""
    return {name: entry for name, entry in report["scores"].items() if entry["part_of"] is None}
