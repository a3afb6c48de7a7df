"""Weights, alpha and temperature over a run."""

import math
from typing import Any

import pytest

from compress.base.config import build_from, to_dict
from compress.base.errors import UsageError
from compress.distill import DistillConfig
from compress.distill.config import Schedule
from compress.distill.objective.schedules import setting_at, value_at


@pytest.mark.parametrize(
    ("shape", "at_quarter", "at_half"),
    [("linear", 4 - 3 * 0.5, 1.0), ("cosine", 4 - 3 * (1 - math.cos(math.pi / 2)) / 2, 1.0), ("step", 4.0, 1.0)],
)
def test_a_number_goes_from_one_value_to_another_over_a_share_of_the_run(
    shape: Any, at_quarter: float, at_half: float
) -> None:
    schedule = Schedule(from_=4.0, to=1.0, shape=shape, over=0.5)
    found = [value_at(schedule, done) for done in (0.0, 0.25, 0.5, 0.9, 1.0)]
    assert found == pytest.approx([4.0, at_quarter, at_half, 1.0, 1.0])
    assert value_at(0.3, 0.7) == 0.3


def test_alpha_gives_soft_and_hard_what_no_weight_names() -> None:
    terms = ("soft", "hard", "hidden")
    config = build_from(DistillConfig, {"alpha": {"from": 1, "to": 0.5}, "weights": {"hidden": 0.2}})
    assert setting_at(config, terms, 0.5).weights == pytest.approx({"soft": 0.75, "hard": 0.25, "hidden": 0.2})
    config = build_from(DistillConfig, {"weights": {"hard": 0.5, "soft": {"from": 0.3, "to": 0.1}, "hidden": 0.2}})
    assert setting_at(config, terms, 1.0).weights == pytest.approx({"soft": 0.1, "hard": 0.5, "hidden": 0.2})
    assert setting_at(config, ("hard",), 0.0).weights == {"hard": 1.0}


def test_level_brings_each_term_to_the_hard_losss_size() -> None:
    config = build_from(DistillConfig, {"alpha": 0.5, "weights": {"hidden": 0.2}, "balance": "level"})
    last = {"soft": 0.25, "hard": 3.0, "hidden": 0.0}
    weights = setting_at(config, ("soft", "hard", "hidden"), 0.0, last).weights
    assert {name: weights[name] * last[name] for name in ("soft", "hard")} == {"soft": 1.5, "hard": 1.5}
    assert weights["hidden"] == 0.2  # what is 0 has no size


def test_words_of_pythons_are_written_plainly() -> None:
    data = {"alpha": {"from": 1.0, "to": 0.5}, "divergence": {"name": "symmetric_kl", "lambda": 0.3}}
    config = build_from(DistillConfig, data)
    written = to_dict(config)
    assert written["alpha"]["from"] == 1.0
    assert written["divergence"]["lambda"] == 0.3
    assert build_from(DistillConfig, written) == config


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "beyond the run": ({"temperature": {"from": 2, "to": 1, "over": 1.5}}, r"temperature.over = 1.5: .* equal to 1\."),
    "no end": ({"alpha": {"from": 1}}, r"'alpha.to' is required\."),
    "too large": ({"alpha": {"from": 2, "to": 1}}, "alpha goes from a number of 0 to 1"),
    "no temperature": ({"temperature": {"from": 1, "to": 0}}, "temperature goes from a number above 0"),
    "another's parameter": ({"divergence": {"name": "reverse_kl", "s": 0.2}}, "reverse_kl has no parameter, and not s"),
    "a wrong parameter": ({"divergence": {"name": "skew_forward_kl", "beta": 0.2}}, "has s .*, and not beta"),
    "out of range": ({"divergence": {"name": "skew_forward_kl", "s": 1.0}}, r"divergence.s = 1.0: .* less than 1\."),
    "unknown": ({"divergence": "skewed"}, r"divergence = \"skewed\": Input should be 'forward_kl'"),
    "no weight": ({"hidden": {"pairs": "last"}}, r"write weights: \{hidden: 0.1\} too"),
    "a misspelt term": ({"weights": {"hiden": 1}}, "did you mean 'weights.hidden'"),
    "no probabilities": ({"divergence": "logit_mse", "self_correct": 0.2}, "logit_mse has none"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_told_once_with_what_to_do(name: str) -> None:
    data, message = WRONG[name]
    with pytest.raises(UsageError, match=message) as refused:
        build_from(DistillConfig, data)
    assert len(str(refused.value).splitlines()) == 1
