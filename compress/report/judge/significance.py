"""Whether two models that answered the same items differ: paired tests, and what many of them together allow."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_FLIPS = 10_000
_BLOCK = 4_000_000


def paired_test(first: Floats, second: Floats) -> tuple[float, str]:
    """(two-sided p, name of the test) for "both models score alike", from their scores [n] on the same items.

    McNemar's exact test where every score is 0 or 1, else `sign_flip_test`.
    """
    if np.isin(first, (0.0, 1.0)).all() and np.isin(second, (0.0, 1.0)).all():
        return mcnemar_exact(int((first > second).sum()), int((second > first).sum())), "McNemar exact"
    return sign_flip_test(second - first), "sign-flip permutation"


def mcnemar_exact(lost: int, gained: int) -> float:
    """Two-sided p of `lost` and `gained` items being alike but for chance.

    Of the items on which two models differ, each is as likely to favour either:
    p = min(1, 2 P(X <= min(lost, gained))), X ~ Binomial(lost + gained, 1/2) (McNemar 1947, in its exact form).
    """
    total, least = lost + gained, min(lost, gained)
    tail = [math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) for k in range(least + 1)]
    return min(1.0, 2.0 * math.fsum(math.exp(term - total * math.log(2.0)) for term in tail))


def sign_flip_test(differences: Floats, *, seed: int = 0) -> float:
    """Two-sided p of a mean difference [n] of zero: how often random signs give one as large (Fisher's paired test).

    10,000 seeded draws, the observed signs counted as one of them, so that p is never 0.
    """
    moved = np.abs(differences[differences != 0])
    observed = abs(float(differences.sum()))
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // max(len(moved), 1))
    as_large = 0
    for start in range(0, _FLIPS, block):
        signs = rng.integers(0, 2, size=(min(block, _FLIPS - start), len(moved))) * 2 - 1
        as_large += int((np.abs(signs @ moved) >= observed * (1 - 1e-12)).sum())
    return (1 + as_large) / (1 + _FLIPS)


def holm(values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979): at 0.05, one report in twenty calls any noise a difference."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    adjusted, floor = [0.0] * len(values), 0.0
    for rank, index in enumerate(order):
        floor = max(floor, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = floor
    return adjusted
