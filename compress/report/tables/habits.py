"""The table of how models answer: what each picks most, how sure it is, and how often that is right."""

from collections.abc import Mapping
from typing import Any

from compress.report.cells import NONE, cell, percent
from compress.report.judge.verdicts import option_letter
from compress.report.run_files import Record
from compress.report.tables.table import Table, labels, main_tasks


def habits(report: Record) -> Table:
    """A row for each task and model whose evaluation has `answers`."""
    rows = []
    for name in main_tasks(report):
        for key, label in labels(report).items():
            answers = (report[key]["tasks"].get(name) or {}).get("answers")
            if answers:
                cells = [cell(answers, field, percent) for field in ("confidence", "accuracy", "calibration_error")]
                noise = cell(answers, "calibration_noise95", percent)
                rows.append([name, label, *_favourite(answers), *cells, noise])
    columns = ["Task", "Model", "Most given answer", "Given to, %", "Right in, %", "Sure, %", "Right, %"]
    note = (
        "Sure: mean probability of the picked option among the options. ECE: expected calibration error, 15 bins; by "
        "chance alone a calibrated model stays under the last column in 95 of 100 samples. Over long options the "
        "probabilities are sharper than the model's own."
    )
    columns += ["ECE, points", "by chance"]
    return Table(title="How they answer", note=note, columns=columns, rows=rows, text_columns=3, folded=True)


def _favourite(answers: Mapping[str, Any]) -> list[str]:
    """The answer given most, the share of items it is given to, and the share in which it is right."""
    if not (chosen := answers.get("chosen")):
        text = str(answers.get("most_common") or NONE)
        shares = (cell(dict(answers), name, percent) for name in ("most_common_share", "most_common_right_share"))
        return [" ".join(text.split()), *shares]
    place, total = max(range(len(chosen)), key=lambda i: chosen[i]), sum(chosen)
    gold = answers.get("gold") or []
    right = percent(gold[place] / total) if total and place < len(gold) else NONE
    return [option_letter(place), percent(chosen[place] / total if total else None), right]
