"""Scores that changed: items that one model answers better than another, with their text."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from compress.report.judge.pairing import Paired
from compress.report.judge.scores import Comparison
from compress.report.judge.verdicts import option_letter
from compress.report.run_files import Record

_SHOWN = 4


def list_flips(pairs: Mapping[str, Paired]) -> list[Record]:
    """Every item of `pairs` (by task) whose score differs between the two models, the largest changes of a task first.

    A flip has task, doc_id, change (`lost`: the first model scores higher; `gained`), first and second (what each
    answered), gold, question, and scores. Items without text have nulls for it.
    """
    flips = []
    for paired in pairs.values():
        delta = paired.scores[:, 1] - paired.scores[:, 0]
        surer = [abs(gold_probability(second) - gold_probability(first)) for first, second in paired.items]
        order = sorted(np.flatnonzero(delta).tolist(), key=lambda i: (-abs(delta[i]), -surer[i], i))
        flips += [_flip(*paired.items[i], paired.scores[i, :2].tolist()) for i in order]
    return flips


def _flip(first: Record, second: Record, scores: list[float]) -> Record:
    return {
        "task": first["task"],
        "doc_id": first.get("doc_id"),
        "doc_sha256": first.get("doc_sha256"),
        "change": "lost" if scores[1] < scores[0] else "gained",
        "first": answer_text(first),
        "second": answer_text(second),
        "gold": gold_text(first),
        "question": first.get("question"),
        "scores": scores,
    }


def summarise_flips(compared: Mapping[str, Comparison], reference: str) -> Record:
    """`flips` of a report: of the last of the compared models, how many items were lost and gained, and examples."""
    if not compared:
        return {"models": [], "lost": 0, "gained": 0, "all": [], "examples": []}
    model = list(compared)[-1]
    flips = list_flips(compared[model].pairs)
    lost = sum(flip["change"] == "lost" for flip in flips)
    return {
        "models": [reference, model],
        "lost": lost,
        "gained": len(flips) - lost,
        "all": flips,
        "examples": examples(flips),
    }


def examples(flips: Sequence[Record]) -> list[Record]:
    """Of each task the first few lost and the first few gained items, for a page."""
    shown: dict[tuple[str, str], list[Record]] = {}
    for flip in flips:
        kept = shown.setdefault((flip["task"], flip["change"]), [])
        if len(kept) < _SHOWN and flip["question"] is not None:
            kept.append(flip)
    return [flip for kept in shown.values() for flip in kept]


def answer_text(item: Record) -> str | None:
    """`B. the lamp`, or the generated text; None when the items say neither."""
    if item.get("choice") is not None:
        return _option(item.get("options") or [], item["choice"])
    answer = item.get("answer")
    return None if answer is None else str(answer).strip()


def gold_text(item: Record) -> str | None:
    """The right options or answers, as text; None when the items do not say."""
    if item.get("gold"):
        return " or ".join(_option(item.get("options") or [], place) for place in item["gold"])
    target = item.get("target")
    return " or ".join(dict.fromkeys(target)) if isinstance(target, list) else target


def _option(options: Sequence[str], place: int) -> str:
    letter = option_letter(place)
    text = options[place].strip() if 0 <= place < len(options) else letter
    return letter if text == letter else f"{letter}. {text}"


def gold_probability(item: Record) -> float:
    """Softmax probability of the right options; 0 where the item has none."""
    scores: list[float] = item.get("log_likelihoods") or []
    gold = [place for place in item.get("gold") or [] if 0 <= place < len(scores)]
    if not gold or not all(map(math.isfinite, scores)):
        return 0.0
    weights = [math.exp(score - max(scores)) for score in scores]
    share: float = sum(weights[place] for place in gold) / sum(weights)
    return share
