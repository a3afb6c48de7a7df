"""From single items to scores: metrics of one question, chance, means with standard errors, groups. Pure functions."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

_PRIMARY = ("completion", "acc", "exact_match", "em", "f1", "contains")


def choice_metrics(log_likelihoods: Sequence[float], choices: Sequence[str], gold: Any) -> dict[str, float]:
    """Accuracy of one multiple-choice item under three ways to compare options.

    With LL_j = sum of log p over option j's tokens: `acc` takes argmax LL_j, `acc_norm` argmax LL_j / characters of
    option j (Meta's acc_char), `acc_bytes` argmax LL_j / UTF-8 bytes; ties go to the first option. `gold` is an index,
    a list of right indices, or the text of the right option.
    """
    right = gold_indices(gold, choices)
    scores = np.asarray(log_likelihoods, dtype=np.float64)
    lengths = {
        "acc": [1] * len(choices),
        "acc_norm": [len(choice) for choice in choices],
        "acc_bytes": [len(choice.encode()) for choice in choices],
    }
    return {name: float(int(np.argmax(scores / np.maximum(length, 1))) in right) for name, length in lengths.items()}


def gold_indices(gold: Any, choices: Sequence[str]) -> set[int]:
    """The right options as indices; a gold outside the options is dropped, so that no choice can be right."""
    golds = gold if isinstance(gold, (list, tuple)) else [gold]
    found = [choices.index(each) if isinstance(each, str) and each in choices else each for each in golds]
    return {int(each) for each in found if not isinstance(each, str) and 0 <= int(each) < len(choices)}


def chance_by_choice(score: Callable[[list[tuple[float, bool]]], float], options: int) -> float:
    """Mean score of a model that is sure of one option picked at random.

    `score` maps (log-likelihood, greedy) of each option to the item's metric. For an argmax metric this is
    right options / options; for TruthfulQA's mc2 it is the fraction of true options.
    """
    total = 0.0
    for pick in range(options):
        total += score([(0.0 if option == pick else -1e4, False) for option in range(options)])
    return total / options


def mean_and_stderr(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and its standard error s / sqrt(n) with the sample deviation s; None for fewer than two values."""
    data = np.asarray(values, dtype=np.float64)
    stderr = float(data.std(ddof=1) / math.sqrt(len(data))) if len(data) > 1 else None
    return float(data.mean()), stderr


def primary_metric(metrics: Sequence[str]) -> str | None:
    """The metric a report leads with: plain accuracy where there is one, the verbatim score of a completion task."""
    for name in _PRIMARY:
        if name in metrics:
            return name
    return next((m for name in _PRIMARY for m in metrics if m.startswith(f"{name},")), next(iter(metrics), None))


def group_score(members: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Scores of a group from its tasks' scores.

    For every metric that all members have a number of: METRIC is the micro average (each item counts the same; that
    of lm-eval's groups with weight_by_size) with lm-eval's pooled standard error, METRIC_macro the plain mean over
    tasks (each task counts the same; that of lm-eval's other groups) with sqrt(sum se_i^2) / k. `chance` is averaged
    the same two ways.
    """
    tasks = list(members.values())
    sizes = [int(task["n"]) for task in tasks]
    shared = [
        metric
        for metric in metrics[next(iter(members))]
        if all(metric in metrics[name] and task[metric] is not None for name, task in members.items())
    ]
    result: dict[str, Any] = {}
    for metric in shared:
        values = [float(task[metric]) for task in tasks]
        errors = [task[f"{metric}_stderr"] for task in tasks]
        result[metric] = _weighted(values, sizes)
        result[f"{metric}_stderr"] = _pooled_stderr(errors, sizes)
        result[f"{metric}_macro"] = sum(values) / len(values)
        known = [error for error in errors if error is not None]
        macro_error = math.sqrt(sum(e * e for e in known)) / len(known) if len(known) == len(errors) else None
        result[f"{metric}_macro_stderr"] = macro_error
    primary = primary_metric(shared)
    chances = [task["chance"] for task in tasks]
    complete = bool(shared) and all(
        c is not None and t["primary"] == primary for c, t in zip(chances, tasks, strict=True)
    )
    shots = {task["num_fewshot"] for task in tasks}
    return {
        **result,
        "chance": _weighted(chances, sizes) if complete else None,
        "chance_macro": sum(chances) / len(chances) if complete else None,
        "n": sum(sizes),
        "num_fewshot": shots.pop() if len(shots) == 1 else None,
        "primary": primary,
        "members": list(members),
    }


def _weighted(values: Sequence[float], sizes: Sequence[int]) -> float:
    return sum(value * size for value, size in zip(values, sizes, strict=True)) / sum(sizes)


def _pooled_stderr(errors: Sequence[float | None], sizes: Sequence[int]) -> float | None:
    """sqrt(sum (n_i - 1) n_i se_i^2 / (N - k) / N): the pooled variance over all items."""
    total = 0.0
    for error, size in zip(errors, sizes, strict=True):
        if error is None:
            return None
        total += (size - 1) * size * error * error
    return math.sqrt(total / (sum(sizes) - len(sizes)) / sum(sizes))
