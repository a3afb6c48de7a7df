"""Forecasts: the law is found again, its intervals cover, and what cannot be carried on is refused."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.optimize import curve_fit
from scipy.stats import binom

from compress.report.judge import forecast
from compress.report.judge.forecast import NoForecast, fit_forecast, full_rate_points
from compress.report.judge.recovery import forecasts
from compress.report.judge.worth import worth
from compress.report.tables.recovery import recovery
from compress.report.tables.worth import worth as worth_table

TOKENS = np.arange(1, 31) * 1e5
LAWS = [(0.2, 0.3, 0.5, 0.003), (0.05, 0.3, 0.3, 0.002), (3.3, 0.2, 0.8, 0.004)]


def law(tokens: np.ndarray, c: float, a: float, b: float) -> np.ndarray:
    return c + a * (tokens / 2e5) ** -b


@pytest.mark.parametrize("c", [0.0, 0.2])
def test_an_exact_curve_is_carried_on_and_inverted(c: float) -> None:
    found = fit_forecast(list(TOKENS[:10]), list(law(TOKENS[:10], c, 0.3, 0.5)))
    value, low, high = found.at(3e6)
    assert value == pytest.approx(law(np.array(3e6), c, 0.3, 0.5), rel=5e-3)
    assert low <= value <= high
    assert high - low < 0.02
    assert found.tokens_to(float(law(np.array(2e6), c, 0.3, 0.5)))[0] == pytest.approx(2e6, rel=0.03)
    assert (found.tokens_to(c - 1e-3)[0] == np.inf) or c == 0


def test_the_fit_has_the_least_squares_of_scipys() -> None:
    rng = np.random.default_rng(3)
    noisy = law(TOKENS, 0.2, 0.3, 0.5) + 0.001 * rng.standard_normal(30)
    found = fit_forecast(list(TOKENS), list(noisy))
    later, noisy, course = TOKENS[15:], noisy[15:], noisy.var()
    (c, a, b), _ = curve_fit(law, later, noisy, p0=(0.1, 0.2, 0.7))
    ours = found.offset + found.scale * (later / found.unit) ** -found.exponent
    squares, least = ((noisy - ours) ** 2).sum(), ((noisy - law(later, c, a, b)) ** 2).sum()
    assert least <= squares < 1.01 * least
    assert found.r2 == pytest.approx(1 - squares / 15 / course)


def coverage(simulations: int) -> list[int]:
    """Of each law, how often the interval from the first third covers the last measure."""
    rng, covered = np.random.default_rng(1), []
    for c, a, b, noise in LAWS:
        hits = 0
        for seed in range(simulations):
            values = law(TOKENS, c, a, b) + noise * rng.standard_normal(len(TOKENS))
            _, low, high = fit_forecast(list(TOKENS[:10]), list(values[:10]), seed=seed).at(TOKENS[-1])
            hits += low <= values[-1] <= high
        covered.append(hits)
    return covered


def test_the_interval_from_the_first_third_covers_the_end_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "_DRAWS", 200)
    low, high = binom.ppf([0.001, 0.999], 120, 0.9)
    assert low <= sum(coverage(40)) <= high


@pytest.mark.slow
def test_the_interval_covers_under_each_law() -> None:
    for hits in coverage(400):
        assert 0.86 <= hits / 400 <= 0.97


def test_what_cannot_be_carried_on_is_refused() -> None:
    rng = np.random.default_rng(0)
    for values, why in (
        (law(TOKENS[:4], 0.2, 0.3, 0.5), "too few; it takes 5"),
        (1 - law(TOKENS, 0.2, 0.3, 0.5), "it does not fall"),
        (np.append(1.0, rng.standard_normal(29)) - np.eye(30)[29] * 9, "a power law explains .* of its course"),
    ):
        with pytest.raises(NoForecast, match=why):
            fit_forecast(list(TOKENS[: len(values)]), list(values))


def test_only_measures_at_the_full_learning_rate_are_taken() -> None:
    rows = [{"step": step, "tokens": 10 * step, "heldout_kl": 1 / (step + 1)} for step in range(0, 101, 10)]
    rows += [{"step": 55, "tokens": 550, "heldout_kl": None}]
    config = {"schedule": "wsd", "warmup_fraction": 0.2, "decay_fraction": 0.3}
    tokens, values = full_rate_points(rows, "heldout_kl", config, 100)
    assert tokens == [200, 300, 400, 500, 600, 700]
    assert values[0] == 1 / 21
    tokens, _ = full_rate_points(rows, "heldout_kl", {**config, "schedule": "constant"}, 100)
    assert tokens[-1] == 1000
    for schedule in ("cosine", "linear"):
        with pytest.raises(NoForecast, match=f"falls over the whole run \\({schedule}\\)"):
            full_rate_points(rows, "heldout_kl", {**config, "schedule": schedule}, 100)


def test_a_run_is_told_its_tokens_to_a_share_of_the_teacher() -> None:
    rows: list[dict[str, Any]] = [{"step": 0, "tokens": 0, "heldout_kl": 2.0}]
    rows += [
        {"step": k, "tokens": 100_000 * k, "heldout_kl": float(law(np.array(1e5 * k), 0.0, 0.4, 0.5))}
        for k in range(1, 11)
    ]
    record = {
        "steps": 10,
        "tokens": 1_000_000,
        "manifest": {"config": {"schedule": "constant", "warmup_fraction": 0.0}},
    }
    (found,) = forecasts(record, rows)
    assert found["expects"][-1]["tokens"] == 1e7
    assert found["expects"][-1]["value"] == pytest.approx(law(np.array(1e7), 0, 0.4, 0.5), rel=0.01)
    # 0.4 (t / 2e5)^-0.5 = (1 - 0.9) 2 at t = 2e5 (0.4 / 0.2)^2
    assert found["tokens"][0]["share"] == 0.9
    assert found["tokens"][0]["value"] == pytest.approx(8e5, rel=0.03)
    assert len(recovery({"forecast": [found]}).rows) == 1
    record["manifest"]["config"]["schedule"] = "cosine"
    (refused,) = forecasts(record, rows)
    assert "falls over the whole run (cosine)" in refused["refused"]
    assert recovery({"forecast": [refused]}).rows == []


def test_a_run_has_paid_when_the_time_saved_is_the_time_it_took() -> None:
    def speed(decode: float, prefill: float) -> dict[str, Any]:
        shape = {"device": "cuda", "dtype": "bfloat16", "batch": 1, "prompt_tokens": 8, "decode_tokens": 8}
        rates = {"decode_tokens_per_s": decode, "prefill_tokens_per_s": prefill}
        return {"speed": {**shape, **rates, "decode_cost_per_million_tokens": 7.2 / 3600 / decode * 1e6}}

    run: Any = SimpleNamespace(
        distill={"seconds": 3600.0},
        stages=[],
        branches=[],
        evals={"teacher": speed(100, 5e3), "student": speed(200, 5e3)},
    )
    found = worth(run)
    assert found is not None
    assert found["decode"]["tokens"] == pytest.approx(3600 / (1 / 100 - 1 / 200))
    assert found["prefill"]["tokens"] is None
    assert found["price_per_hour"] == pytest.approx(7.2)
    read, written = worth_table({"worth": found}).rows
    assert written == ["written", "7.2", "20", "10", "720k"]
    assert read[-1] == "never"
    run.evals["student"]["speed"]["dtype"] = "float32"
    assert worth(run) is None
