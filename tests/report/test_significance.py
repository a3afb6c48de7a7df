"""Paired tests against scipy, and the coverage of every interval of a comparison against a known truth."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from compress.report.judge import stats
from compress.report.judge.draft import draft_figures, speculative_speedup
from compress.report.judge.scores import compare
from compress.report.judge.significance import holm, mcnemar_exact, paired_test, sign_flip_test


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_scipys_binomial_test(lost: int, gained: int) -> None:
    total = lost + gained
    expected = scipy_stats.binomtest(lost, total, 0.5).pvalue if total else 1.0
    assert mcnemar_exact(lost, gained) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_of_many_items_does_not_underflow() -> None:
    assert mcnemar_exact(7000, 7000) == 1.0
    expected = scipy_stats.binomtest(2000, 6000, 0.5).pvalue
    assert mcnemar_exact(2000, 4000) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shift", [0.0, 0.04])
def test_sign_flips_are_scipys_permutation_test(shift: float) -> None:
    rng = np.random.default_rng(0)
    first = rng.random(150)
    second = first + rng.normal(shift, 0.2, size=150)
    expected = scipy_stats.permutation_test(
        (first, second), lambda a, b: np.mean(b - a), permutation_type="samples", n_resamples=20_000,
        rng=np.random.default_rng(1),
    ).pvalue  # fmt: skip
    assert sign_flip_test(second - first) == pytest.approx(expected, abs=0.015)
    assert paired_test(first, second)[1] == "sign-flip permutation"
    assert sign_flip_test(np.zeros(5)) == 1.0


def test_right_and_wrong_items_take_mcnemar() -> None:
    first, second = np.array([1.0] * 9 + [0.0] * 3), np.array([0.0] * 7 + [1.0] * 5)
    assert paired_test(first, second) == (mcnemar_exact(7, 3), "McNemar exact")


def test_holm_by_hand() -> None:
    # Sorted .01 .02 .03 .4 times 4 3 2 1 = .04 .06 .06 .4, never falling.
    assert holm([0.03, 0.01, 0.4, 0.02]) == pytest.approx([0.06, 0.04, 0.4, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def answers(rng: np.random.Generator, joint: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """n items whose (teacher right, student right) has the distribution `joint` over 00, 01, 10, 11."""
    cell = rng.choice(4, size=n, p=joint)
    return (cell >= 2).astype(float), (cell % 2).astype(float)


# P(both wrong), P(only the student right), P(only the teacher right), P(both right).
JOINTS = {
    "a healed student": (150, [0.25, 0.05, 0.20, 0.50]),
    "a student at chance": (400, [0.28, 0.07, 0.45, 0.20]),
    "a student like its teacher": (1000, [0.36, 0.04, 0.04, 0.56]),
    "hard items, few of them": (100, [0.45, 0.15, 0.20, 0.20]),
}


@pytest.mark.parametrize("name", JOINTS)
def test_intervals_of_difference_and_retention_cover_the_truth_95_times_in_100(name: str) -> None:
    n, cells = JOINTS[name]
    joint, rng, runs = np.array(cells), np.random.default_rng(7), 600
    teacher, student = joint[2] + joint[3], joint[1] + joint[3]
    truth = {
        "difference": student - teacher,
        "raw": student / teacher,
        "kept": (student - 0.25) / (teacher - 0.25),
    }
    covered = dict.fromkeys(truth, 0)
    told = dict.fromkeys(truth, 0)
    for _ in range(runs):
        means = stats.paired_means(*answers(rng, joint, n), np.full(n, 0.25), name=name, resamples=1000)
        found = {
            "difference": stats.difference(means),
            "raw": stats.raw_retention(means),
            "kept": stats.chance_corrected_retention([means]),
        }
        for what, estimate in found.items():
            if estimate.ci95 is not None:
                told[what] += 1
                covered[what] += estimate.ci95[0] <= truth[what] <= estimate.ci95[1]
    for what in truth:
        share = covered[what] / told[what]
        assert 0.925 <= share <= 0.98, (what, share)
        assert told[what] >= 0.8 * runs  # none where the teacher may be at chance


def test_tasks_are_resampled_independently_of_each_other() -> None:
    rng, sizes = np.random.default_rng(11), {"a": 40, "b": 40, "ab": 60, "ba": 100, "": 3000}
    score = {"num_fewshot": 0, "asked": {}, "data_sha256": None, "n": None}
    entry = {"metric": "acc", "chance": 0.25, "part_of": None, "teacher": score, "student": score}
    items: tuple[list[Any], list[Any]] = ([], [])
    for name, n in sizes.items():
        for column, of_model in zip(answers(rng, np.array([0.25, 0.05, 0.20, 0.50]), n), items, strict=True):
            of_model += [{"task": name, "doc_id": i, "metrics": {"acc": right}} for i, right in enumerate(column)]
    pairs = compare(dict.fromkeys(sizes, entry), ("teacher", "student"), items).pairs
    draws = [paired.means.draws[:, column] for paired in pairs.values() for column in (0, 1)]
    between = np.kron(1 - np.eye(len(sizes)), np.ones((2, 2))) == 1
    assert np.abs(np.corrcoef(draws)[between]).max() < 0.05  # 5 standard errors at 10,000 resamples


def test_a_difference_that_is_not_there_is_called_noise_19_times_in_20() -> None:
    rng, runs = np.random.default_rng(3), 2000
    called = 0
    for _ in range(runs):
        first, second = answers(rng, np.array([0.3, 0.15, 0.15, 0.4]), 300)
        called += paired_test(first, second)[0] < 0.05
    assert called / runs <= 0.055


@settings(max_examples=10, deadline=None)
@given(st.floats(0.05, 0.95), st.integers(1, 8), st.floats(0.01, 0.9))
def test_the_speed_up_of_a_draft_is_that_of_simulated_speculative_decoding(a: float, drafted: int, cost: float) -> None:
    rng, steps = np.random.default_rng(0), 40_000
    accepted = (rng.random((steps, drafted)) < a).cumprod(axis=1).sum(axis=1)
    written, time = (accepted + 1).sum(), steps * (drafted * cost + 1)
    assert speculative_speedup(a, cost, drafted) == pytest.approx(written / time, rel=0.02)


def test_a_slow_or_a_poor_draft_is_left_out() -> None:
    teacher = {"latency_ms_p50": 10.0, "device": "cpu", "dtype": "float32", "batch": 1}
    near = {"acceptance_rate": 0.5, "top1_agreement": 1.0}
    fast = {**teacher, "latency_ms_p50": 9.0}
    found = draft_figures({"fidelity": near, "speed": fast}, {"speed": teacher})
    assert found is not None
    assert found["sampled"] == {"acceptance_rate": 0.5, "draft_tokens": 0, "speedup": 1.0}
    assert found["greedy"]["draft_tokens"] == 16
    assert found["greedy"]["speedup"] == pytest.approx(17 / (16 * 0.9 + 1))
    assert draft_figures({"fidelity": near, "speed": {**fast, "teacher": teacher}}) == found
    assert draft_figures({"fidelity": near, "speed": {**teacher, "device": "cuda"}}, {"speed": teacher}) is None
    assert draft_figures({"fidelity": None, "speed": teacher}, {"speed": teacher}) is None
