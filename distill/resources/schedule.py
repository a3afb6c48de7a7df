"""Arithmetic of a run: how many steps, what each one does. Pure functions of numbers."""

import math
from typing import NamedTuple

from compress.base.errors import UsageError
from compress.distill.config import DistillConfig
from compress.distill.select import rows_left


class Budget(NamedTuple):
    """The extent of a run in rows (sequences) of the token store."""

    rows_per_step: int
    rows: int
    """All rows the run consumes; the last step may have fewer than the others."""
    steps: int


def budget(config: DistillConfig, *, num_rows: int, seq_len: int) -> Budget:
    """How much a run trains on, given a store of `num_rows` sequences of `seq_len` tokens, of which some are selected.

    Raises:
        UsageError: a step is shorter than a sequence, or more tokens are asked than the store has in `epochs`.
    """
    if config.batch_tokens < seq_len:
        raise UsageError(
            f"batch_tokens = {config.batch_tokens} is less than one sequence of {seq_len} tokens; raise it, or prepare "
            "the data with a shorter seq_len."
        )
    num_rows = len(rows_left(config.select, num_rows))
    there = "the store has" if config.select is None else "distill.select leaves"
    if num_rows == 0:
        raise UsageError(f"There are no training rows: {there} none.")
    rows_per_step = config.batch_tokens // seq_len
    available = num_rows * config.epochs
    rows = available if config.tokens is None else math.ceil(config.tokens / seq_len)
    if rows > available:
        raise UsageError(
            f"tokens = {config.tokens} needs {rows} sequences of {seq_len} tokens and {there} {num_rows}, "
            f"{available} in epochs = {config.epochs}. Prepare more data, ask for at most {available * seq_len} "
            f"tokens, or allow the data to be repeated with epochs = {math.ceil(rows / num_rows)}."
        )
    return Budget(rows_per_step, rows, math.ceil(rows / rows_per_step))


def learning_rate(config: DistillConfig, step: int, steps: int) -> float:
    """Learning rate of the 0-based `step`.

    It rises linearly over the warm-up's w steps (the first step has lr / w), then falls from lr to
    min_lr_fraction * lr, which the last step has. `wsd` (warm-up, stable, decay; Hu et al., arXiv:2404.06395,
    section 4) stays at lr until the last d = decay_fraction * steps, of which the k-th (1-based) has
    1 - sqrt(k / d) of the way left: the shape that Haegele et al. (arXiv:2405.18392, section 3) found better than
    linear, and as good as cosine when d is a fifth of the steps.
    """
    warmup = round(config.warmup_fraction * steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "wsd":
        decay = round(config.decay_fraction * steps)
        into = max(step + 1 - (steps - decay), 0) / max(decay, 1)
        return config.lr * (config.min_lr_fraction + (1 - config.min_lr_fraction) * (1 - math.sqrt(into)))
    progress = (step - warmup) / max(steps - 1 - warmup, 1)
    remaining = 1 - progress if config.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return config.lr * (config.min_lr_fraction + (1 - config.min_lr_fraction) * remaining)


HELDOUT_SHARE = 0.05
"""Of what training costs: the most that held-out measures may by default, but for those at the start and the end."""
_HELDOUT_EVERY = 0.05


HELDOUT_ROWS, LEAST_HELDOUT_ROWS = 100, 16


def most_heldout_rows(config: DistillConfig) -> int:
    """How many held-out rows are measured on at most."""
    return HELDOUT_ROWS if config.heldout_sequences == "auto" else config.heldout_sequences


def heldout_rows(config: DistillConfig, available: int, cost: float) -> int:
    """How many of the `available` held-out rows are measured on; `cost` is one's, as a share of what all steps do."""
    most = most_heldout_rows(config)
    if config.heldout_sequences == "auto":
        most = min(most, max(int(HELDOUT_SHARE / (2 * cost)), LEAST_HELDOUT_ROWS))
    return min(most, available)


def heldout_steps(config: DistillConfig, steps: int, cost: float) -> frozenset[int]:
    """After which of the steps held-out rows are measured: the last, those before a checkpoint, and as often as asked.

    By default every 5% of the steps or, where that costs more than `HELDOUT_SHARE`, fewer of those that a checkpoint
    follows. `cost` is what measuring once costs, the first time before step 1, as a share of what all steps do.
    """
    saved = [step for step in range(1, steps + 1) if is_due(config.checkpoint_every, step, steps)]
    every = _HELDOUT_EVERY if config.heldout_every == "auto" else config.heldout_every
    usual = sorted({*saved, *(step for step in range(1, steps + 1) if is_due(every, step, steps))})
    if config.heldout_every != "auto" or (len(usual) + 1) * cost <= HELDOUT_SHARE:
        return frozenset(usual)
    chosen = saved if len(saved) > 1 else usual
    affordable = max(int(HELDOUT_SHARE / cost) - 1, 1)
    return frozenset(chosen[:: -math.ceil(len(chosen) / affordable)])


def is_due(every: float, done: int, steps: int) -> bool:
    """Whether something due `every` so many steps (or that fraction of all) falls on `done` finished steps.

    It always falls on the last step.
    """
    if done == steps:
        return True
    if every == 0:
        return False
    period = max(1, round(every * steps if every < 1 else every))
    return done % period == 0
