"""Tables of a comparison: how its models were trained, and the trained ones paired with the first of them."""

import json

from compress.base.units import format_count
from compress.report.cells import NONE, fixed, points
from compress.report.run_files import Record, number
from compress.report.tables.retention import tested
from compress.report.tables.table import Table, labels, main_tasks


def trainings(report: Record) -> Table:
    """By model what it learned from, on which rows, and what else was set than for the first that was trained."""
    found: dict[str, Record] = report.get("trainings") or {}
    first = next(iter(found), None)
    rows = []
    for key, made in found.items():
        trained, of, tokens = (number(made[name]) for name in ("trained_parameters", "parameters", "tokens"))
        share = NONE if trained is None or of is None else f"{format_count(trained)} of {format_count(of)}"
        changed = [f"another {role}" for role in made["others"]]
        changed += [f"{name} {_value(new)} ({_value(old)})" for name, (old, new) in made["changed"].items()]
        alike = ("", "") if key == first else (made["rows"], ", ".join(changed) or "nothing")
        learned = NONE if tokens is None else fixed(0)(tokens)
        rows.append([labels(report)[key], made["learns_from"], share, learned, *alike])
    name = labels(report)[first] if first is not None else ""
    return Table(
        title="How they were trained",
        note=f"From the training records; rows and settings beside those of the {name}, whose values are in brackets.",
        columns=["Model", "Learns from", "Parameters trained", "Tokens", "Rows read", "What differs"],
        rows=rows,
        text_columns=6,
    )


def trained_pairs(report: Record) -> Table:
    """The trained models against the first of them, over the same items, where that is not the page's reference."""
    found: dict[str, dict[str, Record]] = report.get("trained_pairs") or {}
    rows = [
        [task, labels(report)[key], points(entry["difference"], entry["difference_ci95"]), *tested(entry)]
        for task in main_tasks(report)
        for key, tasks in found.items()
        if (entry := tasks.get(task))
    ]
    first = next(iter(report.get("trainings") or {}), None)
    name = labels(report)[first] if first is not None else ""
    return Table(
        title="Trained models side by side",
        note=f"Paired with the {name}, as the table above pairs models with the reference.",
        columns=["Task", "Model", "Difference, points", "Lost", "Gained", "p", "Paired items"],
        rows=rows,
        text_columns=2,
    )


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
