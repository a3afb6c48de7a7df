"""Scores beside chance, and retention over the items that teacher and student share."""

from collections.abc import Mapping

import numpy as np

from compress.report import stats
from compress.report.run_files import Record, RunFiles, number
from compress.report.stats import Estimate, PairedMeans

LOWER_IS_BETTER = ("perplexity", "bits_per_byte", "loss")
STUDENTS = ("student_init", "student")
_SAME_SCORE = 1e-6

ItemKey = tuple[str, str, str]


def metric_names(task: Record) -> list[str]:
    """The metrics of a task's record: its numbers, without standard errors, counts and chance levels."""
    known = ("n", "num_fewshot", "chance", "chance_macro")
    return [k for k, v in task.items() if number(v) is not None and k not in known and not k.endswith("_stderr")]


def primary_metric(task: Record) -> str | None:
    """The metric a task is judged by: what the evaluation named, else the first that it lists."""
    named = task.get("primary")
    return named if isinstance(named, str) else next(iter(metric_names(task)), None)


def build_scores(run: RunFiles) -> dict[str, Record]:
    """By task: its metric, chance, parent group, and by model {value, stderr, ci95, n, num_fewshot, versus_chance}."""
    names = dict.fromkeys(name for record in run.evals.values() for name in record["tasks"])
    parents = _parents(run)
    table = {}
    for name in names:
        scored = {key: record["tasks"][name] for key, record in run.evals.items() if name in record["tasks"]}
        first = next(iter(scored.values()))
        metric = primary_metric(first)
        chance = number(first.get("chance"))
        entry: Record = {"metric": metric, "chance": chance, "part_of": parents.get(name)}
        for key, task in scored.items():
            value = number(task.get(metric)) if metric else None
            if value is not None:
                entry[key] = _score(task, str(metric), value, chance)
        table[name] = entry
    return table


def _score(task: Record, metric: str, value: float, chance: float | None) -> Record:
    stderr, n = number(task.get(f"{metric}_stderr")), int(number(task.get("n")) or 0)
    interval = stats.score_interval(value, stderr, n)
    return {
        "value": value,
        "stderr": stderr,
        "ci95": interval,
        "n": n,
        "num_fewshot": task.get("num_fewshot"),
        "versus_chance": stats.versus_chance(interval, chance),
    }


def _parents(run: RunFiles) -> dict[str, str]:
    """Task or group -> the widest reported group whose member tasks include its own; what stands alone is left out."""
    tasks = {name: task for record in run.evals.values() for name, task in record["tasks"].items()}
    members = {name: frozenset(task.get("members") or [name]) for name, task in tasks.items()}
    groups = {name: leaves for name, leaves in members.items() if tasks[name].get("members")}
    parents = {}
    for name, leaves in members.items():
        wider = [group for group, of in groups.items() if leaves < of or (leaves == of and name not in groups)]
        if wider:
            parents[name] = max(wider, key=lambda group: len(groups[group]))
    return parents


def build_retention(run: RunFiles, scores: Mapping[str, Record], model: str) -> tuple[dict[str, Record], Record | None]:
    """Retention of `model` by task, and over all tasks that are no part of another; ({}, None) without both evals.

    Tasks whose chance level is not known stay out of the overall figure.
    """
    if "teacher" not in run.evals or model not in run.evals:
        return {}, None
    table, pooled = {}, []
    items = {key: _index(run.items[key]) for key in ("teacher", model)}
    for name, entry in scores.items():
        if "teacher" not in entry or model not in entry:
            continue
        means, reason = _paired(name, entry, items["teacher"], items[model], model)
        table[name] = _retention(entry, model, means, reason)
        if means is not None and reason is None and entry["part_of"] is None:
            pooled.append(means)
    if not pooled:
        return table, None
    overall = stats.chance_corrected_retention(pooled)
    return table, {
        "chance_corrected": overall.value,
        "ci95": overall.ci95,
        "num_tasks": len(pooled),
        "note": overall.note,
    }


def _retention(entry: Record, model: str, means: PairedMeans | None, reason: str | None) -> Record:
    if means is None:
        raw, corrected, delta = _unpaired(entry, model, reason)
    else:
        raw, delta = stats.raw_retention(means), stats.difference(means)
        corrected = Estimate(None, None, reason) if reason else stats.chance_corrected_retention([means])
    return {
        "metric": entry["metric"],
        "raw": raw.value,
        "raw_ci95": raw.ci95,
        "chance_corrected": corrected.value,
        "ci95": corrected.ci95,
        "difference": delta.value,
        "difference_ci95": delta.ci95,
        "paired_items": means.num_items if means is not None else None,
        "note": corrected.note or raw.note,
    }


def _unpaired(entry: Record, model: str, reason: str | None) -> tuple[Estimate, Estimate, Estimate]:
    """Raw and chance-corrected retention and difference from the scores alone: no intervals, and none if `_refusal`."""
    if _refusal(entry, model):
        return (Estimate(None, None, reason),) * 3
    teacher, student, chance = entry["teacher"]["value"], entry[model]["value"], entry["chance"]
    above = chance is not None and entry["teacher"]["versus_chance"] == "above"
    return (
        Estimate(student / teacher if teacher > 0 else None, None, reason),
        Estimate((student - chance) / (teacher - chance) if above else None, None, reason),
        Estimate(student - teacher, None, reason),
    )


def _refusal(entry: Record, model: str) -> str | None:
    """Why two scores of a task say nothing about each other."""
    teacher, student = entry["teacher"], entry[model]
    if teacher["num_fewshot"] != student["num_fewshot"]:
        return f"not comparable: {teacher['num_fewshot']} and {student['num_fewshot']} shots"
    if any(word in entry["metric"] for word in LOWER_IS_BETTER):
        return "no retention: lower is better for this metric"
    return None


def _index(items: list[Record]) -> dict[ItemKey, Record]:
    return {(item["task"], str(item.get("doc_id")), str(item.get("doc_sha256"))): item for item in items}


def _paired(
    name: str, entry: Record, teacher: dict[ItemKey, Record], student: dict[ItemKey, Record], model: str
) -> tuple[PairedMeans | None, str | None]:
    """Bootstrap over the shared items of a task or group, or None; and what is wrong or missing, if anything."""
    if refusal := _refusal(entry, model):
        return None, refusal
    metric, chance = entry["metric"], entry["chance"]
    rows = []
    for key, item in teacher.items():
        other = student.get(key)
        if other is None or (name != item["task"] and name not in item.get("groups", [])):
            continue
        own = number(item.get("chance"))
        row = (
            number(item["metrics"].get(metric)),
            number(other["metrics"].get(metric)),
            chance if own is None else own,
        )
        if row[0] is not None and row[1] is not None:
            rows.append(row)
    if len(rows) < 2:
        return None, "no interval: no items are shared"
    table = np.array(rows, dtype=np.float64)
    for column, who in enumerate(("teacher", model)):
        if len(rows) == entry[who]["n"] and abs(table[:, column].mean() - entry[who]["value"]) > _SAME_SCORE:
            return None, "no interval: the score is no mean over its items"
    unknown = bool(np.isnan(table[:, 2]).any())
    means = stats.paired_means(table[:, 0], table[:, 1], np.nan_to_num(table[:, 2]))
    return means, "chance is not known" if unknown else None
