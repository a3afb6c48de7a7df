"""Arithmetic of a run against hand-worked numbers."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.base.config import build_from
from compress.base.errors import UsageError
from compress.distill import DistillConfig
from compress.distill.resources.schedule import (
    HELDOUT_SHARE,
    budget,
    heldout_rows,
    heldout_steps,
    is_due,
    learning_rate,
)


def options(**changes: Any) -> DistillConfig:
    return dataclasses.replace(DistillConfig(), **changes)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("cosine", [0.5, 1.0, 1.0, 0.55, 0.1]),
        ("linear", [0.5, 1.0, 1.0, 0.55, 0.1]),
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_learning_rate_literals(schedule: str, expected: list[float]) -> None:
    config = options(lr=1.0, min_lr_fraction=0.1, warmup_fraction=0.4, schedule=schedule)
    assert [learning_rate(config, step, 5) for step in range(5)] == pytest.approx(expected)


def test_cosine_quarter_points() -> None:
    config = options(lr=2.0, min_lr_fraction=0.0, warmup_fraction=0.0)
    expected = [2.0, 1.7071067811865475, 1.0, 0.2928932188134524, 0.0]
    assert [learning_rate(config, step, 5) for step in range(5)] == pytest.approx(expected)
    assert learning_rate(config, 0, 1) == 2.0


def test_wsd_is_flat_and_then_falls_as_one_minus_the_root() -> None:
    config = options(lr=2.0, min_lr_fraction=0.0, warmup_fraction=0.2, schedule="wsd", decay_fraction=0.4)
    expected = [1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.0, 0.5857864376269049, 0.2679491924311228, 0.0]
    assert [learning_rate(config, step, 10) for step in range(10)] == pytest.approx(expected)
    config = options(lr=1.0, min_lr_fraction=0.1, warmup_fraction=0.0, schedule="wsd")
    assert [learning_rate(config, step, 5) for step in range(5)] == pytest.approx([1.0, 1.0, 1.0, 1.0, 0.1])
    config = options(lr=1.0, warmup_fraction=0.0, schedule="wsd", decay_fraction=0.0)
    assert [learning_rate(config, step, 3) for step in range(3)] == [1.0, 1.0, 1.0]


def test_a_decay_that_begins_before_the_warm_up_ends_is_refused() -> None:
    values = {"schedule": "wsd", "warmup_fraction": 0.5, "decay_fraction": 0.6}
    with pytest.raises(UsageError, match="warmup_fraction and decay_fraction are more than all steps"):
        build_from(DistillConfig, values)
    assert build_from(DistillConfig, {**values, "schedule": "cosine"}).decay_fraction == 0.6


@pytest.mark.parametrize(
    ("changes", "num_rows", "seq_len", "expected"),
    [
        ({"batch_tokens": 400}, 10, 100, (4, 10, 3)),
        ({"batch_tokens": 450}, 10, 100, (4, 10, 3)),
        ({"batch_tokens": 400, "tokens": 501}, 10, 100, (4, 6, 2)),
        ({"batch_tokens": 400, "epochs": 3}, 10, 100, (4, 30, 8)),
        ({"batch_tokens": 100, "tokens": 1000}, 10, 100, (1, 10, 10)),
    ],
)
def test_budget_literals(changes: dict[str, Any], num_rows: int, seq_len: int, expected: tuple[int, int, int]) -> None:
    assert budget(options(**changes), num_rows=num_rows, seq_len=seq_len) == expected


@pytest.mark.parametrize(
    ("changes", "num_rows", "message"),
    [
        ({"batch_tokens": 99}, 10, "less than one sequence of 100"),
        ({"batch_tokens": 100, "tokens": 1001}, 10, "at most 1000 tokens.*epochs = 2"),
        ({"batch_tokens": 100}, 0, "no training rows"),
    ],
)
def test_impossible_budgets_are_explained(changes: dict[str, Any], num_rows: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        budget(options(**changes), num_rows=num_rows, seq_len=100)


@pytest.mark.parametrize(
    ("every", "due"),
    [(3, [3, 6, 9, 10]), (0.5, [5, 10]), (0.05, list(range(1, 11))), (0, [10]), (100, [10])],
)
def test_what_is_due_when(every: float, due: list[int]) -> None:
    assert [done for done in range(1, 11) if is_due(every, done, 10)] == due


@given(
    st.integers(1, 300),
    st.floats(1e-6, 3.0),
    st.sampled_from([0, 1, 7, 0.1, 0.5]),
)
def test_held_out_text_costs_a_small_part_unless_its_user_says_how_often(
    steps: int, cost: float, checkpoint_every: float
) -> None:
    def found(every: Any, cost: float = cost) -> frozenset[int]:
        return heldout_steps(options(heldout_every=every, checkpoint_every=checkpoint_every), steps, cost)

    usual, chosen = found(0.05), found("auto")
    assert usual == found(0.05, 1e9) == {
        step for step in range(1, steps + 1)
        if is_due(0.05, step, steps) or is_due(checkpoint_every, step, steps)
    }  # fmt: skip
    assert steps in chosen <= usual
    assert chosen == usual or (len(usual) + 1) * cost > HELDOUT_SHARE
    assert len(chosen) == 1 or (len(chosen) + 1) * cost <= HELDOUT_SHARE * (1 + 1e-9)
    saved = {step for step in range(1, steps + 1) if is_due(checkpoint_every, step, steps)}
    assert chosen == usual or len(saved) == 1 or chosen <= saved
    assert found("auto", 0.0) == usual


@pytest.mark.parametrize(
    ("steps", "cost", "expected"),
    [
        (12, 1.0, [12]), (12, 0.05, [12]), (12, 0.01, [3, 6, 9, 12]), (12, 0.001, list(range(1, 13))),
        (400, 0.01, [40, 160, 280, 400]), (400, 0.001, list(range(20, 401, 20))),
    ],
)  # fmt: skip
def test_when_held_out_text_is_measured_by_default(steps: int, cost: float, expected: list[int]) -> None:
    config = options(heldout_every="auto", checkpoint_every=0.1 if steps == 400 else 1)
    assert sorted(heldout_steps(config, steps, cost)) == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("alpha", 1.2), ("alpha", -0.1), ("temperature", 0), ("lr", True), ("lr", "fast"), ("betas", [0.9, 1.0]),
        ("tokens", 0), ("batch_tokens", "1.5"), ("divergence", "kl"), ("precision", "fp16"), ("epochs", 0),
        ("trackers", ["tensorbord"]), ("warmup_fraction", 2), ("optimizer", "adam"), ("decay_fraction", -0.1),
        ("teacher_max_kl", 0), ("teacher_precision", "int4"), ("keep_checkpoints", 0), ("weight_decay", -1),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"\b{key}"):
        build_from(DistillConfig, {key: value})


def test_counts_lists_and_numbers_as_recipes_write_them() -> None:
    values = {"tokens": "2.2B", "batch_tokens": "512k", "betas": [0.9, 0.99], "trackers": ["tensorboard"], "lr": 1}
    config = build_from(DistillConfig, values)
    assert (config.tokens, config.batch_tokens, config.lr) == (2_200_000_000, 512_000, 1.0)
    assert (config.betas, config.trackers) == ((0.9, 0.99), ("tensorboard",))


@given(cost=st.floats(1e-7, 1), available=st.integers(0, 300))
def test_heldout_rows_cost_a_twentieth_at_the_start_and_the_end(cost: float, available: int) -> None:
    rows = heldout_rows(options(), available, cost)
    assert rows <= min(available, 100)
    assert 2 * rows * cost <= HELDOUT_SHARE or rows <= 16
    assert rows == min(available, 100) or rows <= 16 or 2 * (rows + 1) * cost > HELDOUT_SHARE  # and no fewer than that
    assert heldout_rows(options(heldout_sequences=40), available, cost) == min(40, available)  # what is asked for
