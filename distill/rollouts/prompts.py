"""What the student goes on from: the beginnings of a step's rows."""

from typing import NamedTuple

import numpy as np

from compress.distill.objective.loss import IGNORE_INDEX
from compress.distill.rollouts.config import OnPolicyConfig
from compress.distill.rows.batch import Batch, Ids
from compress.inference.sampling import generator


class Prompts(NamedTuple):
    """Of one process's share of an on-policy step's rows."""

    batch: Batch
    """Those rows; every process has as many, of which the last may be there to fill it up."""
    rows_of_step: int
    """Over all processes."""
    first: int
    """The place in the step of this process's first row."""
    rows: list[int]
    """Which of the rows have a prompt, in ascending order."""
    ids: list[Ids]
    """[n] each."""


def is_on_policy(config: OnPolicyConfig | None, seed: int, step: int) -> bool:
    """Whether the 0-based `step` is; seed and step alone decide."""
    return config is not None and bool(generator(seed, f"on-policy {step}").random() < config.fraction)


def share_prompts(batch: Batch, config: OnPolicyConfig, *, processes: int, rank: int) -> Prompts:
    """The prompts of this process's share of a step's rows, as `compress.distill.rows.batch.split` shares them."""
    rows = -(-len(batch) // processes)
    first = rank * rows
    places = np.arange(first, first + rows)
    own = batch.take(np.where(places < len(batch), places, 0))
    there = range(min(rows, len(batch) - first))
    found = {row: prompt for row in there if (prompt := prompt_of(own, row, config)) is not None}
    return Prompts(own, len(batch), first, list(found), list(found.values()))


def prompt_of(batch: Batch, row: int, config: OnPolicyConfig) -> Ids | None:
    """The prompt [n] of a row; None where it has none that leaves room.

    Of a row that is learned from its first token on, the first `prompt_tokens`, or those of them that are of the last
    document, where documents are kept apart; none where that document ends with them. Else what comes before the first
    answer that leaves room for a rollout.
    """
    learned = batch.labels[row] != IGNORE_INDEX
    if learned[0]:
        ends = np.array([config.prompt_tokens])
        ends = ends[learned[ends - 1]]
    else:
        ends = np.flatnonzero(learned[1:] & ~learned[:-1]) + 2
    starts = np.zeros_like(ends) if batch.positions is None else ends - 1 - batch.positions[row, ends - 1]
    fits = np.flatnonzero(ends - starts + config.most_tokens <= batch.ids.shape[1])
    return batch.ids[row, starts[fits[0]] : ends[fits[0]]] if len(fits) else None
