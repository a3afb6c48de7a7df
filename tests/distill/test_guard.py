"""Which steps are skipped, against a plain Python account of the same rule."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from distill_world import World
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.base.errors import CompressError
from compress.data import TokenStore
from compress.distill import DistillConfig
from compress.distill.loop.guard import Skips, StepGuard
from compress.distill.loop.step import Losses
from compress.distill.objective.objective import Term
from compress.distill.rows.batch import Share

Options = Callable[..., DistillConfig]
WINDOW = 8


def expected(losses: list[float], sigma: float | None) -> list[bool]:
    """The rule, in NumPy's float64."""
    skipped, window = [], []
    for loss in losses:
        bad = not math.isfinite(loss)
        if sigma is not None and len(window) >= WINDOW and not bad:
            last = np.array(window[-WINDOW:])
            bad = loss > last.mean() + sigma * last.std()
        skipped.append(bad)
        if not bad:
            window.append(loss)
    return skipped


def counts(skipped: list[bool]) -> Skips:
    in_a_row = longest = end = last = 0
    for step, bad in enumerate(skipped, 1):
        in_a_row = in_a_row + 1 if bad else 0
        last = step if bad else last
        if in_a_row > longest:
            longest, end = in_a_row, step
    return Skips(sum(skipped), in_a_row, longest, end, last)


LOSS = st.one_of(st.floats(0.5, 1.5), st.floats(0.5, 1.5), st.sampled_from([math.nan, math.inf, 40.0, 1e30]))


@settings(max_examples=150, deadline=None)
@given(losses=st.lists(LOSS, max_size=40), sigma=st.sampled_from([None, 1.0, 3.0]), cut=st.integers(0, 40))
def test_steps_are_skipped_by_the_rule_also_over_a_resume(losses: list[float], sigma: float | None, cut: int) -> None:
    config = DistillConfig(alpha=0.0, spike_sigma=sigma, spike_window=WINDOW)
    device, found = torch.device("cpu"), []
    guard = StepGuard(config, device, total=0, in_a_row=0, recent=[])
    for step, loss in enumerate(losses):
        if step == cut:
            seen = guard.read()
            recent = [float(text) for text in map(repr, guard.recent())]
            guard = StepGuard(config, device, total=seen.total, in_a_row=seen.in_a_row, recent=recent)
        terms = {"hard": Term(torch.tensor(loss, dtype=torch.float64), 1.0)}
        found.append(bool(guard.note(step, terms, torch.tensor(1.0))))
    assert found == expected(losses, sigma)
    if cut >= len(losses):
        assert guard.read() == counts(found)
    else:
        assert (guard.read().total, guard.read().in_a_row) == counts(found)[:2]


def spoil(monkeypatch: pytest.MonkeyPatch, factors: dict[int, float]) -> None:
    """Multiply the losses of some 0-based steps, and their gradients."""
    backward, done = Losses.backward, iter(range(10**6))

    def spoilt(self: Losses, batch: Share, *told: object) -> dict[str, Term]:
        out, factor = backward(self, batch, *told), factors.get(next(done), 1.0)
        for parameter in self._model.parameters():
            parameter.grad.mul_(factor)
        return {name: term._replace(raw=term.raw * factor) for name, term in out.items()}

    monkeypatch.setattr(Losses, "backward", spoilt)


@pytest.mark.faults(9)
def test_a_spike_changes_nothing_and_is_told(
    world: World, options: Options, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil(monkeypatch, {10: 50.0})
    config = options(tokens=14 * 4 * 32, epochs=2, spike_sigma=6.0, spike_window=8, checkpoint_every=1,
                     keep_checkpoints=99, log_every=2)  # fmt: skip
    result = world.run("run", config)
    assert result.skipped_steps == 1
    assert "1 step was skipped: loss or gradient not finite, or a spike of the loss" in result.describe()
    before, after, later = (
        (world.root / f"run/train/checkpoints/step-{step}/model.safetensors").read_bytes() for step in (10, 11, 12)
    )
    assert before == after != later
    said = " ".join(capfd.readouterr().err.split())
    rows = TokenStore.open(world.data).row_ids(40, 4, seed=config.seed, epochs=2)
    assert f"The last was step 11, with the rows {', '.join(map(str, rows))}." in said
    assert [row["skipped"] for row in world.metrics("run") if "loss" in row] == [0, 0, 0, 0, 0, 1, 1]


@pytest.mark.faults(9)
def test_giving_up_names_the_rows(world: World, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, dict.fromkeys((1, 3, 4, 5), math.nan))
    rows = TokenStore.open(world.data).row_ids(12, 12, seed=0)
    with pytest.raises(CompressError, match=r"3 steps in a row .*4 in all.*steps 4 to 6") as failure:
        world.run("run", dataclasses.replace(options(log_every=8), max_skipped_steps=3))
    assert f"They read the rows {', '.join(map(str, rows))} of" in str(failure.value)
    assert not (world.root / "run" / "student").exists()
