"""sweep.json: what each of a sweep's students kept, beside the best of them, over the same documents."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compress.base.outputs import MADE_BY
from compress.report.judge.significance import holm, sign_flip_test
from compress.report.judge.verdicts import SIGNIFICANT
from compress.report.pages.figures import Points, curve
from compress.report.run_files import Record, RunFiles, number, read_run

_Z95 = 1.959963984540054
_PANELS = (
    ("Soft loss: KL from the teacher at temperature 1", "heldout_kl", None),
    ("Soft loss: ULD from the teacher at temperature 1", "heldout_uld", None),
    ("Hard loss: next-token cross-entropy", "heldout_hard", "hard"),
)
"""Title, column of held-out rows, and of training rows that have the same measure."""
_MEASURES = (("fidelity", "kl_nats", "KL from the teacher"), ("heldout", "loss_nats", "held-out loss"))


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
    part, measure, title = next(
        (
            each
            for each in _MEASURES
            if all(number(_of(run, each[0]).get(each[1])) is not None for run in runs.values())
        ),
        _MEASURES[-1],
    )
    rows = [
        {
            "number": count,
            "name": name,
            "folder": place,
            "changes": dict(changes),
            "failed": failed.get(name),
            **(_student(runs[name], part, measure) if name in runs else {}),
        }
        for count, (name, place, changes) in enumerate(cases, 1)
    ]
    measured = [row for row in rows if row.get("value") is not None]
    winner = min(measured, key=lambda row: row["value"], default=None)
    if winner is not None:
        _pair(measured, winner, {row["number"]: _of(runs[row["name"]], part) for row in measured}, measure)
    keys = list(dict.fromkeys(key for _, _, changes in cases for key in changes))
    return {
        MADE_BY: "compress sweep",
        "name": folder.resolve().name,
        "headline": _headline(measured, winner, title),
        "measure": title,
        "keys": keys,
        "cases": rows,
        "winner": None if winner is None else winner["number"],
        "curves": _curves({row["number"]: runs[row["name"]] for row in rows if row["name"] in runs}),
        "heat": _heat(keys, measured),
        "start": _start(runs, part, measure),
    }


def _of(run: RunFiles, part: str, model: str = "student") -> Record:
    found: Record = run.evals.get(model, {}).get(part) or {}
    return found


def _student(run: RunFiles, part: str, measure: str) -> Record:
    fidelity, heldout = _of(run, "fidelity"), _of(run, "heldout")
    train = run.distill or {}
    return {
        "value": number(_of(run, part).get(measure)),
        "stderr": number(_of(run, part).get(f"{measure}_stderr")),
        "documents": _of(run, part).get("documents"),
        "kl_nats": number(fidelity.get("kl_nats")),
        "loss_nats": number(heldout.get("loss_nats")),
        "top1_agreement": number(fidelity.get("top1_agreement")),
        "params": run.evals["student"].get("params"),
        "tokens": train.get("tokens"),
        "seconds": train.get("seconds"),
        "together": train.get("together"),
        "tasks": {
            task: {"metric": entry["primary"], "value": entry[entry["primary"]],
                   "stderr": entry.get(f"{entry['primary']}_stderr")}
            for task, entry in run.evals["student"]["tasks"].items()
            if entry.get("primary")
        },
    }  # fmt: skip


def _pair(rows: Sequence[Record], winner: Record, found: Mapping[int, Record], measure: str) -> None:
    """Put `beside_winner` into each row but the winner's, where both have the measure of each document."""
    best = _documents(found[winner["number"]], measure)
    compared = []
    for row in rows:
        own = _documents(found[row["number"]], measure)
        if row is winner or best is None or own is None or not np.array_equal(own[0], best[0]) or len(best[0]) < 2:
            continue
        tokens = own[0]
        sums = tokens * (own[1] - best[1])
        difference = float(sums.sum() / tokens.sum())
        left, count = sums - tokens * difference, len(tokens)
        error = math.sqrt(count / (count - 1) * float(np.square(left).sum())) / float(tokens.sum())
        ci95 = [difference - _Z95 * error, difference + _Z95 * error]
        row["beside_winner"] = {"difference": difference, "ci95": ci95, "p": sign_flip_test(sums)}
        compared.append(row["beside_winner"])
    for entry, adjusted in zip(compared, holm([entry["p"] for entry in compared]), strict=True):
        entry["p_holm"] = adjusted


def _documents(record: Record, measure: str) -> tuple[Any, Any] | None:
    """Tokens and mean of each document [n]."""
    by = record.get("by_document") or {}
    if "tokens" not in by or measure not in by:
        return None
    return np.array(by["tokens"], dtype=np.float64), np.array(by[measure], dtype=np.float64)


def _headline(measured: Sequence[Record], winner: Record | None, title: str) -> str:
    if winner is None:
        return "No student was measured."
    documents = f" over {winner['documents']} documents" if winner["documents"] else ""
    won = f"{winner['name']} has the least {title}, {winner['value']:.4f} nats a token{documents}."
    others = sorted((row for row in measured if row is not winner), key=lambda row: row["value"])
    if not others:
        return won
    beside = others[0].get("beside_winner")
    ahead = f"Its lead on {others[0]['name']}, {others[0]['value'] - winner['value']:.4f},"
    if beside is None:
        return f"{won} {ahead} was not tested: the two have no documents in common."
    if beside["p_holm"] >= SIGNIFICANT:
        ties = sum(row["beside_winner"]["p_holm"] >= SIGNIFICANT for row in others if "beside_winner" in row)
        more = f"; {ties} students cannot be told from it" if ties > 1 else ""
        return f"{won} {ahead} may be noise (p = {beside['p_holm']:.2g}, paired over the same documents){more}."
    return f"{won} {ahead} is more than noise (p = {beside['p_holm']:.2g}, paired over the same documents)."


def _curves(runs: Mapping[int, RunFiles]) -> dict[str, dict[str, dict[str, Points]]]:
    """Title of a panel -> number of a case -> `training` and `heldout` points, for measures that every run has. What
    students minimised by a temperature or a divergence of their own would say nothing beside each other."""
    found = {}
    for title, key, logged in _PANELS:
        curves = {
            str(count): {
                "training": [] if logged is None else curve(run.train_rows, logged),
                "heldout": curve(run.heldout_rows, key),
            }
            for count, run in runs.items()
        }
        if curves and all(each["heldout"] for each in curves.values()):
            found[title] = curves
    return found


def _heat(keys: Sequence[str], rows: Sequence[Record]) -> Record | None:
    """`down` and `across`, the two keys, their values, and `cells`: [value across, value down] -> the measure."""
    if len(keys) != 2 or not rows or any(len(row["changes"]) != 2 for row in rows):
        return None
    down, across = keys
    values = {key: list(dict.fromkeys(str(row["changes"][key]) for row in rows)) for key in keys}
    cells = [[str(row["changes"][down]), str(row["changes"][across]), row["value"]] for row in rows]
    return {"down": down, "across": across, "values": values, "cells": cells}


def _start(runs: Mapping[str, RunFiles], part: str, measure: str) -> float | None:
    """The measure of what all students began with, if that is one model."""
    found = {number(_of(run, part, "student_init").get(measure)) for run in runs.values()}
    return found.pop() if len(found) == 1 else None
