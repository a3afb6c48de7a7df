"""What a student in training can do, by scores on the same few items again and again.

Rows are those of WORK/ability.jsonl: `of` (teacher or student), `step` and `tokens` (of a student), `task`, `metric`,
`chance` (or null) and `items`, the metric of each item in the same order every time.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from compress.report.judge.stats import Estimate, chance_corrected_retention, paired_means, score_interval
from compress.report.run_files import Record, lower_is_better

_FALL = 3.0
"""Standard errors, as the best of several earlier scores is compared with."""


class Fall(NamedTuple):
    """A task on which a student got worse while it came nearer to its teacher."""

    task: str
    best: float
    at_step: int
    now: float

    def __str__(self) -> str:
        return (
            f"{self.task} fell from {self.best:.1%} (after step {self.at_step}) to {self.now:.1%} while the student "
            "came nearer to its teacher on held-out text: what it is trained on is narrower than the task. Train on "
            "more kinds of text, or on fewer tokens."
        )


def abilities(rows: Sequence[Record]) -> list[Record]:
    """For each task its `metric`, number of items `n`, the `teacher`'s score (or None), and the student's `points`:
    tokens, value and ci95 each time that it was scored."""
    found: dict[str, Record] = {}
    for row in rows:
        entry = {"task": row["task"], "metric": row["metric"], "n": len(row["items"]), "teacher": None, "points": []}
        entry = found.setdefault(row["task"], entry)
        value, error = mean_and_error(row["items"])
        if row["of"] == "teacher":
            entry["teacher"] = value
        else:
            interval = score_interval(value, error, len(row["items"]))
            entry["points"].append({"tokens": row["tokens"], "value": value, "ci95": interval})
    return list(found.values())


def mean_and_error(items: Sequence[float]) -> tuple[float, float]:
    """Mean, and its standard error s / sqrt(n); 0 of one item."""
    values = np.asarray(items, dtype=np.float64)
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(values.mean()), float(error)


def kept(rows: Sequence[Record], step: int) -> Estimate:
    """Share of the teacher's score above chance that the student has after a step, over all tasks whose chance is
    known, with its 95% interval; paired bootstrap over the same items (see `compress.report.judge.stats`)."""
    teacher = {row["task"]: row for row in rows if row["of"] == "teacher"}
    means = []
    for row in rows:
        beside = teacher.get(row["task"])
        if row["of"] != "student" or row["step"] != step or beside is None:
            continue
        if row["chance"] is None or len(beside["items"]) != len(row["items"]) or lower_is_better(row["metric"]):
            continue
        first, second = (np.asarray(values, dtype=np.float64) for values in (beside["items"], row["items"]))
        means.append(paired_means(first, second, np.full(len(second), float(row["chance"])), name=row["task"]))
    return chance_corrected_retention(means) if means else Estimate(None, None, "no task's chance level is known")


def falls(rows: Sequence[Record], heldout: Sequence[Mapping[str, Any]], measure: str = "heldout_kl") -> list[Fall]:
    """The tasks whose last score is below the best before it by more than noise (over the same items, 3 standard
    errors), though the held-out `measure` fell from the one to the other."""
    near = {row["step"]: row[measure] for row in heldout if row.get(measure) is not None}
    by_task: dict[str, list[Record]] = {}
    for row in rows:
        if row["of"] == "student" and not lower_is_better(row["metric"]):
            by_task.setdefault(row["task"], []).append(row)
    found = []
    for task, times in by_task.items():
        *before, last = sorted(times, key=lambda row: int(row["step"]))
        if not before:
            continue
        best = max(before, key=lambda row: float(np.mean(row["items"])))
        change, error = mean_and_error(np.subtract(last["items"], best["items"]).tolist())
        nearer = _at(near, last["step"]) < _at(near, best["step"])
        if change < 0 and change < -_FALL * error and nearer:
            found.append(Fall(task, float(np.mean(best["items"])), best["step"], float(np.mean(last["items"]))))
    return found


def _at(near: Mapping[int, float], step: int) -> float:
    """The last measure up to a step; NaN where there is none."""
    before = [at for at in near if at <= step]
    return near[max(before)] if before else math.nan
