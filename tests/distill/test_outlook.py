"""The progress line says what the held-out measure is expected to be at the end, where that can be said."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from distill_world import World

from compress.distill import DistillConfig
from compress.distill.loop import heldout, train


def lines(world: World, config: DistillConfig, monkeypatch: pytest.MonkeyPatch, name: str) -> list[str]:
    """The progress lines of a run whose held-out KL falls as a power law, whatever is learned."""
    told: list[str] = []
    log = train._log

    def noted(*args: Any) -> str:
        told.append(log(*args))
        return told[-1]

    def found(s: Any, rows: Any) -> str:
        return own(s, [{**row, "heldout_kl": 0.1 + 2 * max(row["tokens"], 1) ** -0.5} for row in rows])

    own = heldout._outlook
    monkeypatch.setattr(train, "_log", noted)
    monkeypatch.setattr(heldout, "_outlook", found)
    world.run(name, config)
    monkeypatch.undo()
    return told


def test_the_end_is_expected_once_five_measures_are_there_and_not_while_the_rate_falls(
    world: World, options: Callable[..., DistillConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = options(schedule="constant", heldout_every=1, warmup_fraction=0.0)
    told = lines(world, config, monkeypatch, "constant")
    assert ["expected" in line for line in told] == [False] * 5 + [True] * 3
    end = 0.1 + 2 * (8 * 4 * 32) ** -0.5
    value = float(told[-1].partition("held-out KL ")[2].split()[0])
    assert value == pytest.approx(end, abs=2e-3)
    falling = lines(world, options(heldout_every=1, warmup_fraction=0.0), monkeypatch, "cosine")
    assert not any("expected" in line for line in falling)


def test_nothing_is_said_before_a_tenth_or_after_the_end() -> None:
    rows = [{"step": k, "tokens": k, "heldout_kl": 1 / k} for k in range(1, 8)]
    config = DistillConfig(schedule="wsd", warmup_fraction=0.0, decay_fraction=0.2)

    def told(step: int) -> str:
        progress = SimpleNamespace(step=step, best_by="heldout_kl")
        budget = SimpleNamespace(steps=100, rows=100)
        session: Any = SimpleNamespace(progress=progress, budget=budget, config=config, rows=SimpleNamespace(seq_len=1))
        return heldout._outlook(session, rows)

    assert told(9) == told(100) == ""
    assert told(10).endswith("expected at the end before the decay")
