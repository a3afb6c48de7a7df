"""Scores beside chance, and retention over the items that teacher and student share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compress.report.judge import stats
from compress.report.judge.pairing import ItemKey, Paired, index_items, pair_items
from compress.report.judge.prompting import asked, prompting_mismatches
from compress.report.judge.significance import holm, paired_test
from compress.report.judge.stats import Estimate
from compress.report.run_files import Record, lower_is_better, number

Evals = Mapping[str, Record]
"""Model key -> its evaluation."""


def metric_names(task: Record) -> list[str]:
    """The metrics of a task's record: its numbers, without standard errors, counts and chance levels."""
    known = ("n", "num_fewshot", "chance", "chance_macro")
    return [k for k, v in task.items() if number(v) is not None and k not in known and not k.endswith("_stderr")]


def build_scores(evals: Evals) -> dict[str, Record]:
    """By task: its metric, chance, parent group, and by model value, stderr, ci95, n, num_fewshot, asked (how its
    prompts were written), versus_chance.

    The metric is the one that the evaluation calls `primary`. A group's model entries also have `macro`: value,
    stderr and chance of the mean over its tasks.
    """
    names = dict.fromkeys(name for record in evals.values() for name in record["tasks"])
    parents = _parents(evals)
    table = {}
    for name in names:
        scored = {key: record["tasks"][name] for key, record in evals.items() if name in record["tasks"]}
        first = next(iter(scored.values()))
        metric = first.get("primary")
        chance = number(first.get("chance"))
        entry: Record = {"metric": metric, "chance": chance, "part_of": parents.get(name)}
        for key, task in scored.items():
            value = number(task.get(metric)) if metric else None
            if value is not None:
                entry[key] = {**_score(task, metric, value, chance), "asked": asked(evals[key])}
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
        "data_sha256": task.get("data_sha256"),
        **_macro(task, metric),
    }


def _macro(task: Record, metric: str) -> Record:
    value = number(task.get(f"{metric}_macro"))
    if value is None:
        return {}
    stderr, chance = number(task.get(f"{metric}_macro_stderr")), number(task.get("chance_macro"))
    return {"macro": {"value": value, "stderr": stderr, "chance": chance}}


def _parents(evals: Evals) -> dict[str, str]:
    """Task or group -> the widest reported group whose member tasks include its own; what stands alone is left out."""
    tasks = {name: task for record in evals.values() for name, task in record["tasks"].items()}
    members = {name: frozenset(task.get("members") or [name]) for name, task in tasks.items()}
    groups = {name: leaves for name, leaves in members.items() if tasks[name].get("members")}
    parents = {}
    for name, leaves in members.items():
        wider = [group for group, of in groups.items() if leaves < of or (leaves == of and name not in groups)]
        if wider:
            parents[name] = max(wider, key=lambda group: len(groups[group]))
    return parents


@dataclass(frozen=True, slots=True)
class Comparison:
    """A model against another by task, over all tasks together, and the items that both answered.

    Attributes:
        tasks: by task raw, chance_corrected, difference (each with its 95% interval), paired_items, lost, gained,
            p_value, test, p_holm, note.
        overall: retention over all tasks that are no part of another, or None.
        pairs: the shared items of each task that is no part of another.
    """

    tasks: dict[str, Record]
    overall: Record | None
    pairs: dict[str, Paired]


def compare(
    scores: Mapping[str, Record], keys: tuple[str, str], items: tuple[Sequence[Record], Sequence[Record]]
) -> Comparison:
    """What model `keys[1]` keeps of `keys[0]` on each task that both have been scored on.

    `items` are the two models' items. `p_holm` is adjusted for all tasks that are no part of another. Tasks whose
    chance level is not known stay out of the overall figure.
    """
    first, second = (index_items(each) for each in items)
    table, pairs, pooled = {}, {}, []
    for name, entry in scores.items():
        if not all(key in entry for key in keys):
            continue
        paired, reason = _paired(name, entry, keys, first, second)
        table[name] = _retention(entry, keys, paired, reason)
        if paired is None:
            continue
        if entry["part_of"] is None:
            pairs[name] = paired
            pooled += [paired.means] if paired.chance_known else []
    main = [name for name, entry in table.items() if entry["p_value"] is not None and scores[name]["part_of"] is None]
    for name, adjusted in zip(main, holm([table[name]["p_value"] for name in main]), strict=True):
        table[name]["p_holm"] = adjusted
    if not pooled:
        return Comparison(table, None, pairs)
    kept = stats.chance_corrected_retention(pooled)
    overall = {"chance_corrected": kept.value, "ci95": kept.ci95, "num_tasks": len(pooled), "note": kept.note}
    return Comparison(table, overall, pairs)


def mismatches(evals: Evals, scores: Mapping[str, Record], labels: Mapping[str, str]) -> list[str]:
    """What was not measured alike: scores of other prompts, items, counts or shots than the first model's, or another
    text."""
    said = prompting_mismatches(evals, labels)
    for name, entry in scores.items():
        (first, base), *others = [(key, entry[key]) for key in labels if key in entry] or [("", {})]
        for key, score in others:
            faults = [
                f"{score[field]} {word} where the {labels[first]} has {base[field]}"
                for field, word in (("num_fewshot", "shots"), ("n", "items"))
                if score[field] != base[field]
            ]
            hashes = (score["data_sha256"], base["data_sha256"])
            if not faults and None not in hashes and hashes[0] != hashes[1]:
                faults.append(f"other items than the {labels[first]}")
            if faults and entry["part_of"] is None:
                said.append(f"{name}: the {labels[key]} was scored on {' and '.join(faults)}.")
    for role, part, name in (("text", "heldout", "held-out text"), ("other_text", "other_text", "other text")):
        texts = {key: ((evals[key].get("manifest") or {}).get("inputs") or {}).get(role) for key in labels}
        known = {key: text for key, text in texts.items() if text is not None and evals[key].get(part)}
        for key, text in known.items():
            if text != next(iter(known.values())):
                said.append(f"The {name} of the {labels[key]} is another: their losses cannot be compared.")
    return said


def _retention(entry: Record, keys: tuple[str, str], paired: Paired | None, reason: str | None) -> Record:
    test: Record = {"paired_items": None, "lost": None, "gained": None, "p_value": None, "test": None, "p_holm": None}
    if paired is None:
        raw, corrected, delta = _unpaired(entry, keys, reason)
    else:
        first, second, _ = paired.scores.T
        means = paired.means
        raw, delta = stats.raw_retention(means), stats.difference(means)
        unknown = Estimate(None, None, "chance is not known")
        corrected = stats.chance_corrected_retention([means]) if paired.chance_known else unknown
        p_value, name = paired_test(first, second)
        test |= {"paired_items": means.num_items, "p_value": p_value, "test": name}
        test |= {"lost": int((second < first).sum()), "gained": int((second > first).sum())}
    return {
        "metric": entry["metric"],
        "raw": raw.value,
        "raw_ci95": raw.ci95,
        "chance_corrected": corrected.value,
        "ci95": corrected.ci95,
        "difference": delta.value,
        "difference_ci95": delta.ci95,
        **test,
        "note": corrected.note or raw.note,
    }


def _unpaired(entry: Record, keys: tuple[str, str], reason: str | None) -> tuple[Estimate, Estimate, Estimate]:
    """Raw and chance-corrected retention and difference from the scores alone, without intervals.

    None at all where the scores say nothing about each other: if `_refusal`, or over numbers of items that differ.
    """
    counts = [entry[key]["n"] for key in keys]
    refusal = _refusal(entry, keys)
    if refusal is None and counts[0] != counts[1]:
        refusal = f"not comparable: {counts[0]} and {counts[1]} items"
    if refusal:
        return (Estimate(None, None, refusal),) * 3
    first, second, chance = entry[keys[0]]["value"], entry[keys[1]]["value"], entry["chance"]
    above = chance is not None and entry[keys[0]]["versus_chance"] == "above"
    return (
        Estimate(second / first if first > 0 else None, None, reason),
        Estimate((second - chance) / (first - chance) if above else None, None, reason),
        Estimate(second - first, None, reason),
    )


def _refusal(entry: Record, keys: tuple[str, str]) -> str | None:
    """Why two scores of a task say nothing about each other."""
    first, second = (entry[key] for key in keys)
    if first["asked"] != second["asked"]:
        return "not comparable: prompts of another kind"
    if first["num_fewshot"] != second["num_fewshot"]:
        return f"not comparable: {first['num_fewshot']} and {second['num_fewshot']} shots"
    hashes = {first["data_sha256"], second["data_sha256"]}
    if first["n"] == second["n"] and None not in hashes and len(hashes) > 1:
        return "not comparable: other items"
    if lower_is_better(entry["metric"]):
        return "no retention: lower is better for this metric"
    return None


def _paired(
    name: str,
    entry: Record,
    keys: tuple[str, str],
    first: Mapping[ItemKey, Record],
    second: Mapping[ItemKey, Record],
) -> tuple[Paired | None, str | None]:
    refusal = _refusal(entry, keys)
    return (None, refusal) if refusal else pair_items(name, entry, keys, first, second)
