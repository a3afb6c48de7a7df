"""The items that two models both answered, matched by what was asked and not by their order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compress.report.judge.stats import PairedMeans, paired_means
from compress.report.run_files import Record, number

ItemKey = tuple[str, str, str]
_SAME_SCORE = 1e-6


@dataclass(frozen=True, slots=True)
class Paired:
    """Shared items of a task or group.

    Attributes:
        items: the two models' records of each item.
        scores: [n, 3], the first model's score, the second's, and chance, which is 0 where `chance_known` is false.
        means: their means, and those of bootstrap resamples.
    """

    items: Sequence[tuple[Record, Record]]
    scores: NDArray[np.float64]
    means: PairedMeans
    chance_known: bool


def index_items(items: Sequence[Record]) -> dict[ItemKey, Record]:
    """Items by task, number and content of the document."""
    return {(item["task"], str(item.get("doc_id")), str(item.get("doc_sha256"))): item for item in items}


def pair_items(
    name: str, entry: Record, keys: tuple[str, str], first: Mapping[ItemKey, Record], second: Mapping[ItemKey, Record]
) -> tuple[Paired | None, str | None]:
    """The items of task or group `name` that both answered, or None and why a comparison over them would mislead.

    `entry` is the task's row of `build_scores`, `keys` the two models' keys there.
    """
    metric, chance = entry["metric"], entry["chance"]
    pairs: list[tuple[Record, Record]] = []
    rows = []
    for identity, item in first.items():
        other = second.get(identity)
        if other is None or (name != item["task"] and name not in item.get("groups", [])):
            continue
        own = number(item.get("chance"))
        scored = number(item["metrics"].get(metric)), number(other["metrics"].get(metric))
        if None not in scored:
            pairs.append((item, other))
            rows.append((*scored, chance if own is None else own))
    if len(rows) < 2:
        return None, "no interval: no items are shared"
    table = np.array(rows, dtype=np.float64)
    for column, key in enumerate(keys):
        if len(rows) == entry[key]["n"] and abs(table[:, column].mean() - entry[key]["value"]) > _SAME_SCORE:
            return None, "no interval: the score is no mean over its items"
    known = not bool(np.isnan(table[:, 2]).any())
    table = np.nan_to_num(table)
    return Paired(pairs, table, paired_means(*table.T, name=name), known), None
