"""From scores to what is taken: rows by rank, tokens by value; and how scores are distributed. Pure functions."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_BINS = 40
_SHOWN = 0.995
_CHUNK_ROWS = 4096
QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


class Distribution(NamedTuple):
    """Distinct values [k] in ascending order, float64, and how often each occurs, int64."""

    values: NDArray[np.float64]
    counts: NDArray[np.int64]

    def at(self, rank: int) -> float:
        """The value with `rank` others before it in the order of all."""
        return float(self.values[np.searchsorted(np.cumsum(self.counts), rank, side="right")])

    @property
    def total(self) -> int:
        """How many there are."""
        return int(self.counts.sum())


def easy_to_hard(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Row numbers [n] in ascending order of their scores [n]; of equal ones the first row first."""
    return np.argsort(scores, kind="stable").astype(np.int64)


def distribution(scores: NDArray[Any]) -> Distribution:
    """How scores are distributed: float32 [n], or float16 [n, m] of any size, none below 0, NaN where there is none."""
    if scores.dtype != np.float16:
        values, counts = np.unique(scores.astype(np.float64), return_counts=True)
        return Distribution(values, counts.astype(np.int64))
    # The bit patterns of float16 from 0 to its largest are in the order of their values, and few enough to count.
    patterns = np.arange(np.finfo(np.float16).max.view(np.uint16) + 1, dtype=np.uint16)
    counts = np.zeros(len(patterns), np.int64)
    for start in range(0, len(scores), _CHUNK_ROWS):
        chunk = np.asarray(scores[start : start + _CHUNK_ROWS])
        counts += np.bincount(chunk[~np.isnan(chunk)].view(np.uint16), minlength=len(patterns))
    found = counts > 0
    return Distribution(patterns[found].view(np.float16).astype(np.float64), counts[found])


def bounds(scores: Distribution, first: float, last: float) -> tuple[float, float]:
    """The lowest and the highest value between two quantiles, both included."""
    ranks = int(np.floor(first * (scores.total - 1))), int(np.ceil(last * (scores.total - 1)))
    return scores.at(ranks[0]), scores.at(ranks[1])


def describe(scores: Distribution) -> dict[str, Any]:
    """Quantiles, and a histogram of equal bins: `counts` [b] between `edges` [b + 1]; what is beyond the highest edge,
    at most one in 200, is in the last bin."""
    high = scores.at(int(np.ceil(_SHOWN * (scores.total - 1)))) or 1.0
    edges = np.linspace(0.0, high, _BINS + 1)
    counts, _ = np.histogram(np.minimum(scores.values, high), bins=edges, weights=scores.counts)
    mean = float(scores.values @ scores.counts / scores.total)
    quantiles = {f"{q:g}": scores.at(round(q * (scores.total - 1))) for q in QUANTILES}
    histogram = {"edges": edges.tolist(), "counts": counts.astype(int).tolist()}
    return {"count": scores.total, "mean": mean, "quantiles": quantiles, "histogram": histogram}
