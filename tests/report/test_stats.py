"""Intervals and retention against scipy, against algebra, and by simulation."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from compress.report.judge import stats


def right_or_wrong(n: int, share: float, rng: np.random.Generator) -> np.ndarray:
    return (rng.random(n) < share).astype(float)


def correlated_pair(n: int, teacher: float, student: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Right or wrong with one difficulty per item: P(right) is as given, answers agree more often than by chance."""
    shared = rng.normal(size=n)
    columns = []
    for share in (teacher, student):
        latent = (shared + rng.normal(size=n)) / np.sqrt(2)
        columns.append((latent < scipy_stats.norm.ppf(share)).astype(float))
    return columns[0], columns[1]


@given(st.integers(2, 3000), st.data())
def test_wilson_interval_is_scipys(n: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, n))
    expected = scipy_stats.binomtest(right, n).proportion_ci(method="wilson")
    assert stats.wilson_interval(right / n, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_no_item_right_is_never_above_a_chance_of_zero_and_all_right_never_below_one() -> None:
    for n in range(2, 500):
        assert stats.versus_chance(stats.score_interval(0.0, 0.0, n), 0.0) == "same"
        assert stats.versus_chance(stats.score_interval(1.0, 0.0, n), 1.0) == "same"


def test_score_interval_knows_right_or_wrong_items_by_their_standard_error() -> None:
    rng = np.random.default_rng(0)
    binary, graded = right_or_wrong(200, 0.3, rng), rng.random(200)
    for values, expected in (
        (binary, stats.wilson_interval(binary.mean(), 200)),
        (graded, scipy_stats.norm.interval(0.95, graded.mean(), scipy_stats.sem(graded))),
    ):
        stderr = values.std(ddof=1) / np.sqrt(200)
        assert stats.score_interval(values.mean(), stderr, 200) == pytest.approx(expected)
    assert stats.score_interval(1.0, 0.0, 50) == stats.wilson_interval(1.0, 50)
    assert stats.score_interval(0.5, None, 50) is None


def test_verdict_against_chance() -> None:
    assert stats.versus_chance((0.3, 0.4), 0.25) == "above"
    assert stats.versus_chance((0.2, 0.3), 0.25) == "same"
    assert stats.versus_chance((0.1, 0.2), 0.25) == "below"
    assert stats.versus_chance(None, 0.25) is None
    assert stats.versus_chance((0.1, 0.2), None) is None


@pytest.mark.parametrize("graded", [False, True])
def test_intervals_are_scipys_paired_bootstrap(graded: bool) -> None:
    rng = np.random.default_rng(1)
    teacher, student = correlated_pair(600, 0.7, 0.5, rng)
    if graded:
        teacher, student = teacher * rng.random(600), student * rng.random(600)
    chance = np.where(np.arange(600) % 3, 0.25, 0.2) * (0.2 if graded else 1.0)
    means = stats.paired_means(teacher, student, chance, name="a")
    statistics: dict[str, tuple[stats.Estimate, Callable[..., Any]]] = {
        "raw": (stats.raw_retention(means), lambda t, s, c, axis: s.mean(axis) / t.mean(axis)),
        "corrected": (
            stats.chance_corrected_retention([means]),
            lambda t, s, c, axis: (s - c).mean(axis) / (t - c).mean(axis),
        ),
        "difference": (stats.difference(means), lambda t, s, c, axis: (s - t).mean(axis)),
    }
    for name, (ours, statistic) in statistics.items():
        theirs = scipy_stats.bootstrap(
            (teacher, student, chance), statistic, paired=True, method="percentile", n_resamples=9999, batch=500,
            rng=np.random.default_rng(2),
        ).confidence_interval  # fmt: skip
        width = theirs.high - theirs.low
        assert ours.value == pytest.approx(statistic(teacher, student, chance, 0), abs=1e-12), name
        assert ours.ci95 == pytest.approx((theirs.low, theirs.high), abs=0.05 * width), name


def test_a_student_like_its_teacher_keeps_all_and_a_guessing_one_keeps_nothing() -> None:
    teacher = np.repeat([1.0, 0.0], [60, 40])
    chance = np.full(100, 0.25)
    same = stats.paired_means(teacher, teacher, chance, name="a")
    assert stats.raw_retention(same) == stats.Estimate(1.0, (1.0, 1.0))
    assert stats.chance_corrected_retention([same]) == stats.Estimate(1.0, (1.0, 1.0))
    assert stats.difference(same) == stats.Estimate(0.0, (0.0, 0.0))
    guess = stats.paired_means(teacher, np.tile([1.0, 0.0, 0.0, 0.0], 25), chance, name="a")
    estimate = stats.chance_corrected_retention([guess])
    assert estimate.value == pytest.approx(0.0)
    assert estimate.ci95 is not None
    assert estimate.ci95[0] < 0 < estimate.ci95[1]


def test_retention_by_hand() -> None:
    teacher, student = np.repeat([1.0, 0.0], [65, 35]), np.repeat([1.0, 0.0], [45, 55])
    means = stats.paired_means(teacher, student, np.full(100, 0.25), name="a")
    assert stats.raw_retention(means).value == pytest.approx(45 / 65)
    assert stats.chance_corrected_retention([means]).value == pytest.approx((0.45 - 0.25) / (0.65 - 0.25))
    other = stats.paired_means(np.ones(50), np.repeat([1.0, 0.0], 25), np.zeros(50), name="b")
    both = stats.chance_corrected_retention([means, other])
    assert both.value == pytest.approx((0.20 + 0.50) / (0.40 + 1.00))


def test_undefined_when_the_teacher_is_at_chance_or_at_zero() -> None:
    rng = np.random.default_rng(3)
    at_chance = stats.paired_means(
        right_or_wrong(400, 0.26, rng), right_or_wrong(400, 0.3, rng), np.full(400, 0.25), name="a"
    )
    estimate = stats.chance_corrected_retention([at_chance])
    assert (estimate.value, estimate.ci95) == (None, None)
    assert estimate.note is not None
    assert "chance" in estimate.note
    assert stats.raw_retention(at_chance).ci95 is not None
    zero = stats.paired_means(np.zeros(40), np.ones(40), np.zeros(40), name="a")
    assert stats.raw_retention(zero).value is None


def test_interval_is_refused_not_infinite_when_few_resamples_have_no_teacher_score() -> None:
    teacher = np.zeros(200)
    teacher[:4] = 1.0
    means = stats.paired_means(teacher, np.ones(200), np.zeros(200), name="a")
    share_of_zero = np.mean(means.draws[:, 0] == 0)
    assert 0.005 < share_of_zero < 0.025
    estimate = stats.raw_retention(means)
    assert estimate.value == pytest.approx(50)
    assert estimate.ci95 is None or np.isfinite(estimate.ci95).all()


def test_seeded_and_indifferent_to_the_order_of_items() -> None:
    rng = np.random.default_rng(4)
    teacher, student = correlated_pair(300, 0.8, 0.6, rng)
    order = rng.permutation(300)
    chance = np.full(300, 0.25)
    first = stats.chance_corrected_retention([stats.paired_means(teacher, student, chance, name="a")])
    again = stats.chance_corrected_retention([stats.paired_means(teacher[order], student[order], chance, name="a")])
    assert first.value == pytest.approx(again.value)
    assert first.ci95 == pytest.approx(again.ci95)


def test_intervals_cover_the_truth_95_times_in_100() -> None:
    rng = np.random.default_rng(5)
    teacher_share, student_share, runs = 0.7, 0.55, 400
    truth = (student_share - 0.25) / (teacher_share - 0.25)
    covered = narrower = 0
    for _ in range(runs):
        teacher, student = correlated_pair(300, teacher_share, student_share, rng)
        paired = stats.paired_means(teacher, student, np.full(300, 0.25), name="a", resamples=1000)
        low, high = stats.chance_corrected_retention([paired]).ci95 or (0.0, 0.0)
        covered += low <= truth <= high
        apart = stats.paired_means(teacher, rng.permutation(student), np.full(300, 0.25), name="a", resamples=1000)
        wide = stats.chance_corrected_retention([apart]).ci95 or (0.0, 0.0)
        narrower += high - low < wide[1] - wide[0]
    assert 0.92 <= covered / runs <= 0.98
    assert narrower / runs > 0.95
