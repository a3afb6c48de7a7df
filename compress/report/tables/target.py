"""The table of what a run was to reach."""

from compress.base.units import format_bytes, format_count
from compress.report.cells import NONE
from compress.report.run_files import Record
from compress.report.tables.table import Table

_NAMES = {
    "params": "Parameters, at most",
    "bytes": "Bytes of weights, at most",
    "decode_speedup": "Decoding speed, at least",
    "kept": "Score above chance kept, at least",
}
_WORDS = {True: "reached", False: "not reached", None: "not known"}


def target(report: Record) -> Table:
    """What was asked for, what came of it, and what else it would take."""
    rows = []
    for entry in report.get("target") or []:
        found = NONE if entry["found"] is None else _shown(entry["name"], entry["found"])
        if entry["ci95"] is not None:
            found += f" [{', '.join(_shown(entry['name'], end) for end in entry['ci95'])}]"
        takes = "; ".join(entry["takes"])
        asked = _shown(entry["name"], entry["asked"])
        rows.append([_NAMES[entry["name"]], asked, found, _WORDS[entry["reached"]], takes])
    if not any(row[-1] for row in rows):
        rows = [row[:-1] for row in rows]
    columns = ["Target", "Asked", "Healed student", "Reading", "What it would take"][: len(rows[0]) if rows else None]
    note = (
        "What is kept counts as reached once the lower end of its 95% interval is as much as was asked for. Shares and "
        "multiples are of the teacher's."
    )
    train = report.get("train") or {}
    if train.get("reached") and train.get("steps") == 0:
        note += " Nothing was trained: the student kept what was asked for as it was cut."
    return Table(title="What was to be reached", note=note, columns=columns, rows=rows)


def _shown(name: str, value: float) -> str:
    if name == "kept":
        return f"{value:.0%}"
    if name == "decode_speedup":
        return f"{value:.2f}×"
    if value <= 1:
        return f"{value:.3f}×"
    return format_bytes(value) if name == "bytes" else format_count(value)
