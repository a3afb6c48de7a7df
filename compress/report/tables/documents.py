"""The table of a comparison's models on held-out text, each paired with the first over the same documents."""

from compress.report.cells import NONE, more_nats, nats
from compress.report.run_files import Record
from compress.report.tables.table import Table, labels


def documents(report: Record) -> Table:
    """By model the measures that two or more have, and how much more that is than of the first that has it."""
    found: list[Record] = report.get("documents") or []
    columns, rows = ["Model"], {key: [label] for key, label in labels(report).items()}
    for measure in found:
        title = str(measure["title"])
        columns += [title[:1].upper() + title[1:], f"More than the {labels(report)[measure['reference']]}", "p"]
        for key, row in rows.items():
            entry = measure["models"].get(key)
            beside = None if entry is None else entry["beside_first"]
            row += [NONE, NONE, NONE] if entry is None else [nats(entry["value"], entry["stderr"]), *more_nats(beside)]
    note = (
        "Nats a token, ± a standard error over held-out documents. More than the first: paired over the same "
        "documents, with 95% intervals; p of a sign-flip test, adjusted for the number of models (Holm)."
    )
    return Table(
        title="Held-out text, document by document", note=note, columns=columns, rows=[*rows.values()] if found else []
    )
