"""The table of sizes between student and teacher."""

from compress.report.cells import cell, fixed, plus_minus, with_error
from compress.report.run_files import Record
from compress.report.tables.table import Table


def sizes(report: Record) -> Table:
    """Nearness and scores of the healed student, of each model grown from it, and of the teacher."""
    found = report.get("sizes") or []
    tasks = list(found[0]["tasks"]) if found else []
    rows = [
        [
            each["model"],
            str(each["layers"]),
            cell(each, "params", fixed(0)),
            with_error(each, "kl_nats", fixed(4)),
            with_error(each, "loss_nats", fixed(3)),
            *(plus_minus(each["tasks"].get(task), (each["tasks"].get(task) or {}).get("metric")) for task in tasks),
        ]
        for each in found
    ]
    note = (
        "The healed student with blocks of its teacher put back where they were dropped, without training. KL and loss "
        "on held-out text, nats a token; scores in percent; ± one standard error."
    )
    columns = ["Model", "Layers", "Parameters", "KL", "Loss", *tasks]
    return Table(title="Every size between", note=note, columns=columns, rows=rows)
