"""The table of branches and what they were merged into."""

from compress.base.units import format_seconds
from compress.report.cells import NONE, cell, fixed, listed, plus_minus, with_error
from compress.report.run_files import Record, number
from compress.report.tables.table import Table


def branches(report: Record) -> Table:
    """Scores of the cut, each branch, the mean of the branches and the merged model, on each source of the text."""
    found = report.get("branches") or {"rows": []}
    rows = found["rows"]
    sources = list(rows[0]["kl_nats"]) if rows else []
    tasks = list(rows[-1]["tasks"]) if rows else []
    cells = [
        [
            each["model"],
            cell(each, "tokens", fixed(0)),
            cell(each, "seconds", format_seconds),
            *(with_error(each["kl_nats"][name], "kl_nats", fixed(4)) for name in sources),
            *(with_error(each["loss_nats"][name], "loss_nats", fixed(3)) for name in sources),
            *(_score(each["tasks"].get(task, {})) for task in tasks),
        ]
        for each in rows
    ]
    note = (
        "Each branch is where the student began, healed on one source of the text; the student is their merge. KL to "
        "the teacher and loss on held-out text of each source, nats a token ± one standard error."
    )
    columns = ["Model", "Tokens", "Wall time", *(f"KL, {name}" for name in sources)]
    columns += [*(f"Loss, {name}" for name in sources), *tasks]
    return Table(title="Branches and merge", note=f"{note}{_in_words(found)}", columns=columns, rows=cells)


def _in_words(found: Record) -> str:
    """Whether the merged model is better than its parts are on average."""
    told = []
    if nearer := found.get("nearer"):
        told.append(f"no farther from the teacher than its branches are on average on {listed(nearer)}")
    if farther := found.get("farther"):
        told.append(f"farther than they are on {listed(farther)}")
    return f" The {found['merged']} is {', and '.join(told)}." if told else ""


def _score(score: Record) -> str:
    return plus_minus(score, score["metric"]) if number(score.get("value")) is not None else NONE
