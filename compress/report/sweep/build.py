"""sweep.json: what each of a sweep's students kept, beside the best of them, over the same documents."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.base.outputs import MADE_BY
from compress.report.judge.documents import MEASURES, Measure, beside, least, winner_words
from compress.report.pages.curves import loss_curves
from compress.report.run_files import Record, RunFiles, number, read_run


def build_sweep(folder: Path, cases: Sequence[tuple[str, str, Mapping[str, Any]]], failed: Mapping[str, str]) -> Record:
    """`name`, `headline`, `measure` that students are ranked by, `keys` that the runs differ in, `cases`, `winner` (the
    number of one, or None), `curves` by title and case, `heat` (of two keys, else None).

    A case has `number`, `name`, `folder`, `changes`, `failed`, and of its student `value` and `stderr` of the measure,
    `beside_winner` (`difference`, `ci95`, `p`, `p_holm`), `kl_nats`, `loss_nats`, `top1_agreement`, `params`, `tasks`.
    Differences are paired: the same documents of both students, tokens weighing alike.
    """
    runs = {
        name: read_run(folder / "runs" / place)
        for name, place, _ in cases
        if name not in failed and (folder / "runs" / place / "eval" / "student.json").is_file()
    }
    everyone = [run.evals["student"] for run in runs.values()]
    measure = next((each for each in MEASURES if all(each.value(one) is not None for one in everyone)), MEASURES[-1])
    rows = [
        {
            "number": count,
            "name": name,
            "folder": place,
            "changes": dict(changes),
            "failed": failed.get(name),
            **(_student(runs[name], measure) if name in runs else {}),
        }
        for count, (name, place, changes) in enumerate(cases, 1)
    ]
    measured = [row for row in rows if row.get("value") is not None]
    evals: dict[int, Record] = {row["number"]: runs[row["name"]].evals["student"] for row in measured}
    winner = least(evals, measure)
    if winner is not None:
        compared = beside(evals, winner, measure)
        for row in measured:
            row |= {"beside_winner": compared[row["number"]]} if row["number"] in compared else {}
    names = {row["number"]: row["name"] for row in measured}
    keys = list(dict.fromkeys(key for _, _, changes in cases for key in changes))
    return {
        MADE_BY: "compress sweep",
        "name": folder.resolve().name,
        "headline": winner_words(names, evals, measure) or "No student was measured.",
        "measure": measure.title,
        "keys": keys,
        "cases": rows,
        "winner": winner,
        "curves": loss_curves(
            {
                str(row["number"]): (runs[row["name"]].train_rows, runs[row["name"]].heldout_rows)
                for row in rows
                if row["name"] in runs
            }
        ),
        "heat": _heat(keys, measured),
        "start": _start(runs, measure),
    }


def _student(run: RunFiles, measure: Measure) -> Record:
    record, train = run.evals["student"], run.distill or {}
    values = {each.name: each.value(record) for each in MEASURES}
    return {
        "value": measure.value(record),
        "stderr": measure.stderr(record),
        "documents": measure.of(record).get("documents"),
        **values,
        "top1_agreement": number((record.get("fidelity") or {}).get("top1_agreement")),
        "params": record.get("params"),
        "tokens": train.get("tokens"),
        "seconds": train.get("seconds"),
        "together": train.get("together"),
        "tasks": {
            task: {"metric": entry["primary"], "value": entry[entry["primary"]],
                   "stderr": entry.get(f"{entry['primary']}_stderr")}
            for task, entry in record["tasks"].items()
            if entry.get("primary")
        },
    }  # fmt: skip


def _heat(keys: Sequence[str], rows: Sequence[Record]) -> Record | None:
    """`down` and `across`, the two keys, their values, and `cells`: [value across, value down] -> the measure."""
    if len(keys) != 2 or not rows or any(len(row["changes"]) != 2 for row in rows):
        return None
    down, across = keys
    values = {key: list(dict.fromkeys(str(row["changes"][key]) for row in rows)) for key in keys}
    cells = [[str(row["changes"][down]), str(row["changes"][across]), row["value"]] for row in rows]
    return {"down": down, "across": across, "values": values, "cells": cells}


def _start(runs: Mapping[str, RunFiles], measure: Measure) -> float | None:
    """The measure of what all students began with, if that is one model."""
    found = {measure.value(run.evals.get("student_init", {})) for run in runs.values()}
    return found.pop() if len(found) == 1 else None
