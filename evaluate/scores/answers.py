"""How a model answers a set of items, right or wrong: what it picks, how sure it is, whether it repeats itself.

What a score hides: a model that always picks one option scores near chance, and one that is sure of wrong answers
scores like one that is not.
"""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.evaluate.scores.scores import primary_metric

_BINS = 15
_DRAWS = 1000
_SHOWN_CHARACTERS = 80
_LETTER = 2

Floats = NDArray[np.float64]


def answer_summary(items: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """`answers` of an eval JSON's task, from its items; None where no item has an answer.

    - lettered: whether every option is a letter or two (`A`), so that its probability is the model's own
    - chosen, gold: items by position of the picked option, and of the first right one (gold null where a task scores in
      its own way)
    - confidence: mean softmax probability of the picked option over the item's options, from the summed
      log-likelihoods; accuracy: how often it is right; calibration_error and calibration_noise95: see `calibration`
    - of generated answers: n, distinct, most_common (cut), most_common_share, most_common_right_share (of how many
      items it was given to and right, by the primary metric; null where that is no share), empty_share
    """
    picked = [item for item in items if item.get("log_likelihoods")]
    if picked:
        return _choices(picked)
    written = [item for item in items if isinstance(item.get("answer"), str)]
    if not written:
        return None
    texts = [item["answer"].strip() for item in written]
    counts = collections.Counter(texts)
    (text, times), *_ = counts.most_common(1)
    right = [_right(item) for item, given in zip(written, texts, strict=True) if given == text]
    known = [share for share in right if share is not None]
    return {
        "n": len(texts),
        "distinct": len(counts),
        "most_common": text[:_SHOWN_CHARACTERS],
        "most_common_share": times / len(texts),
        "most_common_right_share": sum(known) / len(texts) if len(known) == len(right) else None,
        "empty_share": counts[""] / len(texts),
    }


def _right(item: Mapping[str, Any]) -> float | None:
    """How right an item is by its primary metric; None where that is not between 0 and 1."""
    metrics = item.get("metrics") or {}
    value = metrics.get(primary_metric(list(metrics)))
    return value if value is not None and 0 <= value <= 1 else None


def _choices(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    width = max(len(item["options"]) for item in items)
    chosen = np.bincount([item["choice"] for item in items], minlength=width)
    confidence = np.array([option_probabilities(item["log_likelihoods"]).max() for item in items])
    told = [item for item in items if item.get("gold")]
    complete = len(told) == len(items)
    gold = np.bincount([item["gold"][0] for item in told], minlength=width).tolist() if complete else None
    lettered = all(len(option.strip()) <= _LETTER for item in items for option in item["options"])
    summary = {"lettered": lettered, "chosen": chosen.tolist(), "gold": gold, "confidence": float(confidence.mean())}
    if complete:
        right = np.array([float(item["choice"] in item["gold"]) for item in items])
        summary["accuracy"] = float(right.mean())
        summary["calibration_error"], summary["calibration_noise95"] = calibration(confidence, right)
    return summary


def option_probabilities(log_likelihoods: Sequence[float]) -> Floats:
    """softmax of the options' log-likelihoods, [options]; all alike where each is -inf."""
    scores = np.asarray(log_likelihoods, dtype=np.float64)
    if np.isneginf(scores).all():
        scores = np.zeros_like(scores)
    weights = np.exp(scores - scores.max())
    return np.asarray(weights / weights.sum())


def calibration(confidence: Floats, right: Floats, *, seed: int = 0) -> tuple[float, float]:
    """Expected calibration error, and what it would be at most in 95 of 100 samples of a calibrated model.

    ECE = sum over bins of (items in the bin / n) |mean right - mean confidence|, in 15 bins of equal width over [0, 1]
    (Guo et al., arXiv:1706.04599, section 2). It is above zero for a calibrated model too, by chance: the second figure
    is the 95% quantile when each answer is right with probability `confidence` (consistency resampling, Broecker and
    Smith 2007). Both inputs are [n].
    """
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    member = np.zeros((len(bins), _BINS))
    member[np.arange(len(bins)), bins] = 1.0
    gap = (right - confidence) @ member
    rng = np.random.default_rng(seed)
    errors = []
    for _ in range(_DRAWS):
        simulated = (rng.random(len(bins)) < confidence).astype(np.float64)
        errors.append(np.abs((simulated - confidence) @ member).sum() / len(bins))
    return float(np.abs(gap).sum() / len(bins)), float(np.quantile(errors, 0.95))
