"""One object an item, from lm-eval's samples: its metrics and chance, and what was asked and answered."""

import math
from typing import Any

import numpy as np

from compress.evaluate.scores.scores import chance_by_choice, choice_metrics, gold_indices, primary_metric

Item = dict[str, Any]


def sample_items(task: Any, samples: list[dict[str, Any]]) -> list[Item]:
    """The items of a task, with lm-eval's per-item metrics under all its filters and ours added.

    Every item has doc_id, doc_sha256, metrics, chance and `question`, the text without few-shot
    examples. Of a multiple-choice task it has `options` (texts), `log_likelihoods` (nats, summed over each option's
    tokens), `choice` (the index of the largest, the first of equals) and `gold` (right indices; None where the task
    scores in a way of its own); of a generated answer `answer` and `target` (text, or a list of texts).
    """
    items: dict[int, Item] = {}
    for sample in samples:
        found = items.get(sample["doc_id"])
        if found is None:
            found = {"doc_id": sample["doc_id"], "doc_sha256": sample["doc_hash"], "metrics": {}}
            found |= {"chance": _chance(task, sample), **_transcript(task, sample)}
            items[sample["doc_id"]] = found
        for metric in sample["metrics"]:
            number = finite(sample[metric])
            if number is not None:
                found["metrics"][metric_name(metric, sample["filter"])] = number
    if task.OUTPUT_TYPE == "multiple_choice" and not task.multiple_input:
        _add_choice_metrics(task, samples, items)
    return list(items.values())


def _transcript(task: Any, sample: dict[str, Any]) -> dict[str, Any]:
    """What was asked and answered."""
    question = task.doc_to_text(sample["doc"])
    if task.OUTPUT_TYPE == "multiple_choice":
        gold = None
        scores, choices = _options(task, sample)
        if task.multiple_input:  # the options are contexts, which one text follows; lm-eval's doc_to_text is the gold
            gold = sorted(gold_indices(question, choices))
            question, choices = choices[0], [str(choice) for choice in task.doc_to_choice(sample["doc"])]
        choice = int(np.argmax(scores))
        return {
            "question": str(question),
            "options": choices,
            "log_likelihoods": scores,
            "choice": choice,
            "gold": gold,
        }
    if task.OUTPUT_TYPE == "generate_until":
        target = sample["target"]
        told = [str(each) for each in target] if isinstance(target, (list, tuple)) else str(target)
        return {"question": str(question), "answer": str(sample["filtered_resps"][0]), "target": told}
    return {"question": str(question)}


def _add_choice_metrics(task: Any, samples: list[dict[str, Any]], items: dict[int, Item]) -> None:
    """Add acc_norm, acc_bytes and the gold where the task's `acc` is the plain argmax accuracy (mc2's is not)."""
    ours, golds = {}, {}
    for sample in samples:
        scores, choices = _options(task, sample)
        ours[sample["doc_id"]] = choice_metrics(scores, choices, sample["target"])
        golds[sample["doc_id"]] = sorted(gold_indices(sample["target"], choices))
    if all(items[doc_id]["metrics"].get("acc") == metrics["acc"] for doc_id, metrics in ours.items()):
        for doc_id, metrics in ours.items():
            items[doc_id]["metrics"] = {**metrics, **items[doc_id]["metrics"]}
            items[doc_id]["gold"] = golds[doc_id]


def _options(task: Any, sample: dict[str, Any]) -> tuple[list[float], list[str]]:
    """Log-likelihood and text of each option, without the unconditional requests of acc_mutual_info."""
    scores = [response[0] for response in sample["filtered_resps"]]
    choices = [arguments[1].removeprefix(task.config.target_delimiter) for arguments in sample["arguments"]]
    count = len(scores) // (2 if "acc_mutual_info" in sample["metrics"] else 1)
    return scores[:count], choices[:count]


def _chance(task: Any, sample: dict[str, Any]) -> float | None:
    """Primary score of a model that picks an option at random; 0 for generated answers; None where there is none."""
    metric = primary_metric(sample["metrics"])
    if task.OUTPUT_TYPE == "generate_until":
        return 0.0 if task.higher_is_better().get(metric, True) else None
    if task.OUTPUT_TYPE != "multiple_choice":
        return None
    _, choices = _options(task, sample)
    if callable(task.config.process_results):
        return chance_by_choice(
            lambda answers: float(task.process_results(sample["doc"], answers)[metric]), len(choices)
        )
    if metric is None or not metric.startswith("acc"):  # a correlation, an F1: chance depends on all answers
        return None
    if task.multiple_input:
        return 1.0 / len(choices)
    return len(gold_indices(sample["target"], choices)) / len(choices)


def metric_name(metric: str, kind: str) -> str:
    """lm-eval's `metric,filter`, without the filter that does nothing."""
    return metric if kind == "none" else f"{metric},{kind}"


def finite(value: Any) -> float | None:
    """A finite number as a float; None for lm-eval's "N/A", for tuples that only its aggregation reads, and for NaN."""
    if isinstance(value, (str, tuple, list, dict)) or value is None:
        return None
    return float(value) if math.isfinite(value) else None
