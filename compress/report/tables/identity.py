"""The table of whom models say they are."""

from compress.report.cells import cell, fixed, percent, with_error
from compress.report.run_files import Record
from compress.report.tables.table import Table, labels

_TASK = "identity"


def identity(report: Record) -> Table:
    """A row for each model that was asked."""
    rows, names = [], dict[str, None]()
    for key, label in labels(report).items():
        scores = (report[key].get("tasks") or {}).get(_TASK)
        if scores:
            names |= dict.fromkeys(report[key].get("identity") or [])
            found = [with_error(scores, metric, percent) for metric in ("strict", "loose")]
            rows.append([label, *found, cell(scores, "n", fixed(0))])
    note = (
        'How many of the answers to questions like "Who are you?" name the teacher\'s family or maker '
        f"({', '.join(names)}; strict), or any assistant's that is known (loose); percent ± one standard error."
    )
    columns = ["Model", "Strict, %", "Loose, %", "Questions"]
    return Table(title="Whom it says it is", note=note, columns=columns, rows=rows)
