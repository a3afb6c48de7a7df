"""Scores of single items, chance, means and groups, against literals and brute force."""

import itertools
import math

import numpy as np
import pytest

from compress.evaluate.scores.answers import option_probabilities
from compress.evaluate.scores.scores import (
    chance_by_choice,
    choice_metrics,
    gold_indices,
    group_score,
    mean_and_stderr,
    primary_metric,
)


def test_the_three_normalisations_disagree_where_they_should() -> None:
    # -6/1 character, -8/4 characters (8 bytes), -9/6 characters (6 bytes): plain, characters, bytes pick 0, 2, 1.
    choices, scores = ["a", "éééé", "abcdef"], [-6.0, -8.0, -9.0]
    for gold, expected in ((0, "acc"), (2, "acc_norm"), (1, "acc_bytes")):
        metrics = choice_metrics(scores, choices, gold)
        assert [name for name, value in metrics.items() if value == 1.0] == [expected]


def test_a_tie_goes_to_the_first_option_and_a_list_of_golds_accepts_any() -> None:
    assert choice_metrics([-1.0, -1.0], ["x", "y"], 0)["acc"] == 1.0
    assert choice_metrics([-1.0, -1.0], ["x", "y"], 1)["acc"] == 0.0
    assert choice_metrics([-1.0, -2.0, -3.0], ["x", "y", "z"], [2, 0])["acc"] == 1.0


def test_gold_as_text_as_index_and_out_of_range() -> None:
    assert gold_indices("y", ["x", "y"]) == {1}
    assert gold_indices([0, 1], ["x", "y"]) == {0, 1}
    assert gold_indices(5, ["x", "y"]) == set()
    assert gold_indices("other", ["x", "y"]) == set()


def test_chance_of_argmax_is_one_in_options_and_of_mc2_the_fraction_of_true_options() -> None:
    def accuracy(answers: list[tuple[float, bool]]) -> float:
        return float(int(np.argmax([ll for ll, _ in answers])) == 3)

    labels = np.array([1, 0, 0, 1, 1])

    def mc2(answers: list[tuple[float, bool]]) -> float:
        p = np.exp([ll for ll, _ in answers])
        return float((p / p.sum())[labels == 1].sum())

    assert chance_by_choice(accuracy, 5) == pytest.approx(1 / 5)
    assert chance_by_choice(mc2, 5) == pytest.approx(3 / 5)


def test_standard_error_of_a_proportion() -> None:
    mean, stderr = mean_and_stderr([1.0] * 3 + [0.0] * 7)
    assert mean == pytest.approx(0.3)
    assert stderr == pytest.approx(math.sqrt(0.3 * 0.7 / 9))
    assert mean_and_stderr([1.0]) == (1.0, None)


def test_group_micro_is_the_mean_over_items_and_macro_over_tasks() -> None:
    items = {"small": [1.0, 0.0], "large": [1.0, 1.0, 1.0, 0.0, 1.0, 0.0]}
    members = {}
    for (name, values), chance in zip(items.items(), (0.25, 0.5), strict=True):
        mean, stderr = mean_and_stderr(values)
        members[name] = {
            "acc": mean, "acc_stderr": stderr, "extra": 0.0, "extra_stderr": None,
            "chance": chance, "n": len(values), "num_fewshot": 5, "primary": "acc",
        }  # fmt: skip
    group = group_score(members, {"small": ["acc"], "large": ["acc", "extra"]})
    assert group["acc"] == pytest.approx(np.mean(list(itertools.chain(*items.values()))))
    assert group["acc_macro"] == pytest.approx((1 / 2 + 4 / 6) / 2)
    within = sum((np.array(v) - np.mean(v)) @ (np.array(v) - np.mean(v)) for v in items.values()) / (8 - 2)
    assert group["acc_stderr"] == pytest.approx(math.sqrt(within / 8))
    se = [members[name]["acc_stderr"] for name in members]
    assert group["acc_macro_stderr"] == pytest.approx(math.hypot(*se) / 2)
    assert group["chance"] == pytest.approx((2 * 0.25 + 6 * 0.5) / 8)
    assert group["chance_macro"] == pytest.approx(0.375)
    assert (group["n"], group["num_fewshot"], group["members"]) == (8, 5, ["small", "large"])
    assert "extra" not in group
    members["small"] |= {"acc": None, "acc_stderr": None}  # lm-eval's aggregate was NaN
    assert "acc" not in group_score(members, {"small": ["acc"], "large": ["acc"]})


def test_options_of_no_probability_are_alike() -> None:
    assert option_probabilities([-math.inf, -math.inf]).tolist() == [0.5, 0.5]
    assert option_probabilities([-math.inf, -3.0]).tolist() == [0.0, 1.0]


def test_the_primary_metric_is_plain_accuracy_or_verbatim_completion() -> None:
    assert primary_metric(["acc_norm", "acc"]) == "acc"
    assert primary_metric(["em", "contains", "completion"]) == "completion"
    assert primary_metric(["exact_match,strict-match", "exact_match,flexible-extract"]) == "exact_match,strict-match"
    assert primary_metric(["word_perplexity"]) == "word_perplexity"
    assert primary_metric([]) is None
