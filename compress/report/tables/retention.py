"""What each model keeps of the reference, with paired intervals and tests."""

from compress.report.cells import NONE, points, ratio_with_interval
from compress.report.judge.verdicts import p_words
from compress.report.run_files import Record
from compress.report.tables.table import Table, compared, labels, main_tasks


def retention(report: Record) -> Table:
    """What each model keeps of the reference, above chance and raw, with paired intervals and tests."""
    tables = compared(report)
    rows = []
    for name in main_tasks(report):
        label = name
        for model in reversed(tables):
            if entry := tables[model].get(name):
                cells = [_kept(entry), ratio_with_interval(entry["raw"], entry["raw_ci95"])]
                cells += [points(entry["difference"], entry["difference_ci95"]), *tested(entry)]
                rows.append([label, labels(report)[model], *cells])
                label = ""
    label = "all tasks, equal weight"
    for model in reversed(tables):
        if overall := report["overall"].get(model):
            rows.append([label, labels(report)[model], _kept(overall), *[NONE] * 6])
            label = ""
    reference = next(iter(labels(report).values()), "")
    columns = [
        "Task",
        "Model",
        "Kept above chance",
        "Kept, raw",
        "Difference, points",
        "Lost",
        "Gained",
        "p",
        "Paired items",
    ]
    note = (
        f"Share of the score of the {reference} that is kept: (model − chance) / ({reference} − chance), and model / "
        f"{reference}. In brackets 95% intervals of a paired bootstrap over the items that both models answered. Lost: "
        f"items that the {reference} gets right and the model does not; p: a paired test that both score alike "
        "(McNemar's exact one for right and wrong), adjusted for the number of tasks (Holm)."
    )
    return Table(title="Retention", note=note, columns=columns, rows=rows, text_columns=2)


def tested(entry: Record) -> list[str]:
    """Items lost and gained, p, and the items that were paired."""
    counts = [NONE if entry[key] is None else f"{entry[key]:,}" for key in ("lost", "gained", "paired_items")]
    p_value = entry["p_value"] if entry["p_holm"] is None else entry["p_holm"]
    shown = NONE if p_value is None else p_words(p_value).removeprefix("p = ").removeprefix("p ")
    return [*counts[:2], shown, counts[2]]


def _kept(entry: Record) -> str:
    shown, note = ratio_with_interval(entry["chance_corrected"], entry["ci95"]), entry["note"]
    if note is None:
        return shown
    return note if entry["chance_corrected"] is None else f"{shown} ({note})"
