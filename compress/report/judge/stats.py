"""How sure a score is, and what share of its teacher a student keeps: intervals, paired over the same items.

Retention of a student score s against its teacher's t on a task whose blind guess scores c:

    raw              s / t
    chance_corrected (s - c) / (t - c)

Both are ratios of means over the SAME items, so their intervals come from a paired percentile bootstrap
(Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13): items are drawn with replacement, and teacher,
student and chance of a drawn item stay together. A ratio whose denominator may be zero has no interval: when the
teacher cannot be told from chance (or from zero) the retention is undefined, and says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]
Place = Literal["above", "same", "below"]
Floats = NDArray[np.float64]

RESAMPLES = 10_000
_Z95 = 1.959963984540054
_TAIL = 0.025
_MAX_COUNTS = 4_000_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95% interval, or None and a note that says why there is none."""

    value: float | None
    ci95: Interval | None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class PairedMeans:
    """Means over one set of items: of the data, and of its bootstrap resamples.

    Attributes:
        mean: [3], the mean score of teacher, student and chance.
        draws: [resamples, 3], the same means in each resample.
        num_items: how many items both models answered.
    """

    mean: Floats
    draws: Floats
    num_items: int


def wilson_interval(value: float, n: int) -> Interval:
    """95% score interval of a proportion `value` seen in `n` trials (Wilson 1927); sane at 0, at 1 and at small n."""
    spread = _Z95**2 / n
    centre = (value + spread / 2) / (1 + spread)
    half = _Z95 * np.sqrt(value * (1 - value) / n + spread / (4 * n)) / (1 + spread)
    # At 0 and 1 one bound is that number; rounding must not lift it off, or no item right would be above a chance of 0.
    low = 0.0 if value <= 0 else max(0.0, float(centre - half))
    return low, 1.0 if value >= 1 else min(1.0, float(centre + half))


def score_interval(value: float, stderr: float | None, n: int) -> Interval | None:
    """95% interval of a mean score: Wilson's when the items are right or wrong, else value +- 1.96 stderr.

    A mean v of items in [0, 1] has variance v (1 - v) only when every item is 0 or 1 (the Bhatia-Davis bound), so the
    standard error alone tells which case it is. None without a standard error.
    """
    if stderr is None or n < 2:
        return None
    if 0 <= value <= 1 and stderr**2 * (n - 1) >= value * (1 - value) * (1 - 1e-6):
        return wilson_interval(value, n)
    return value - _Z95 * stderr, value + _Z95 * stderr


def versus_chance(interval: Interval | None, chance: float | None) -> Place | None:
    """Where a score's interval lies: `above` chance, `below` it, or the `same` (it covers chance); None if unknown."""
    if interval is None or chance is None:
        return None
    low, high = interval
    return "above" if low > chance else "below" if high < chance else "same"


def paired_means(
    teacher: Floats, student: Floats, chance: Floats, *, name: str, resamples: int = RESAMPLES
) -> PairedMeans:
    """Bootstrap the means of teacher, student and chance, each [n] with item i the same in all three.

    Drawing n items with replacement is drawing multinomial counts of the DISTINCT (teacher, student, chance) triples,
    which are few for right-or-wrong items: 14,000 items and 10,000 resamples take milliseconds. The draws of a task are
    seeded with its `name`: the same each time, and independent of every other task's.
    """
    rows = np.stack([teacher, student, chance], axis=1).astype(np.float64)
    values, counts = np.unique(rows, axis=0, return_counts=True)
    rng = np.random.default_rng([ord(letter) for letter in name])
    block = max(1, _MAX_COUNTS // len(values))
    sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
    draws = [rng.multinomial(len(rows), counts / len(rows), size=size) @ values / len(rows) for size in sizes]
    return PairedMeans(rows.mean(axis=0), np.concatenate(draws), len(rows))


def raw_retention(means: PairedMeans) -> Estimate:
    """student / teacher."""
    return _ratio(means.mean[1], means.mean[0], means.draws[:, 1], means.draws[:, 0], "zero")


def chance_corrected_retention(means: Sequence[PairedMeans]) -> Estimate:
    """(student - chance) / (teacher - chance), each summed over the tasks in `means`, whose draws must be independent.

    With one task this is that task's retention. With several it is the retention of the macro average.
    """
    student, teacher = (sum(m.mean[i] - m.mean[2] for m in means) for i in (1, 0))
    student_draws, teacher_draws = (np.sum([m.draws[:, i] - m.draws[:, 2] for m in means], axis=0) for i in (1, 0))
    return _ratio(student, teacher, student_draws, teacher_draws, "chance")


def difference(means: PairedMeans) -> Estimate:
    """student - teacher, in the score's own unit."""
    return Estimate(float(means.mean[1] - means.mean[0]), _percentiles(means.draws[:, 1] - means.draws[:, 0]))


def _ratio(top: float, bottom: float, top_draws: Floats, bottom_draws: Floats, floor: str) -> Estimate:
    if bottom <= 0 or np.mean(bottom_draws <= 0) > _TAIL:
        return Estimate(None, None, f"undefined: teacher at {floor}")
    positive = bottom_draws > 0
    ratios = top_draws / np.where(positive, bottom_draws, 1.0)
    interval = _percentiles(np.where(positive | (top_draws == 0), ratios, np.copysign(np.inf, top_draws)))
    if not np.isfinite(interval).all():
        return Estimate(float(top / bottom), None, f"no interval: teacher close to {floor}")
    return Estimate(float(top / bottom), interval)


def _percentiles(draws: Floats) -> Interval:
    low, high = np.quantile(draws, [_TAIL, 1 - _TAIL], method="inverted_cdf")
    return float(low), float(high)
