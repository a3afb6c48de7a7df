"""The student in training writes, and what it wrote becomes rows to learn from."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from compress.distill.objective.loss import IGNORE_INDEX
from compress.distill.resources.reading import as_it_is
from compress.distill.rollouts.config import OnPolicyConfig
from compress.distill.rollouts.prompts import Prompts
from compress.distill.rollouts.state import Counts, count
from compress.distill.rows.batch import Batch, Ids, Share, share
from compress.inference.plain import generate_plainly
from compress.inference.sampling import Sampler


class Written(NamedTuple):
    """The rollouts of an on-policy step."""

    share: Share
    """This process's rows, to learn from."""
    counts: Counts
    """Over all processes."""
    seconds: float
    """That they took."""


class Writer:
    """Lets a student in training write: without dropout and gradient, through its own key-value cache."""

    def __init__(
        self,
        config: OnPolicyConfig,
        *,
        student: Any,
        accelerator: Any,
        ends: set[int],
        vocabulary: int,
        seed: int,
        micro_batch_rows: int,
    ) -> None:
        self._config, self._student, self._accelerator = config, student, accelerator
        self._ends, self._vocabulary, self._seed, self._size = ends, vocabulary, seed, micro_batch_rows

    def __call__(self, prompts: Prompts, step: int, limit: int) -> Written:
        """Go on from each prompt by at most `limit` tokens, drawn by seed, step and the row's place in the step alone.

        Each of them is a label, the end included; nothing after it is.
        """
        started = time.perf_counter()
        names = [f"{step} {prompts.first + row}" for row in prompts.rows]
        rollouts = self.rollouts(prompts.ids, names, limit)
        counts = self._over_processes(count(prompts.ids, rollouts, self._ends))
        seconds = time.perf_counter() - started
        pieces = share(rows_of(prompts, rollouts), size=self._size, processes=1, rank=0).pieces
        divisor = (counts.tokens or 1.0) / self._accelerator.num_processes
        return Written(Share(prompts.rows_of_step, pieces, divisor), counts, seconds)

    def rollouts(self, prompts: Sequence[Ids], names: Sequence[str], limit: int) -> list[list[int]]:
        """At most `limit` tokens after each of the prompts [n], up to and with the first that ends a text; each is
        drawn by random numbers of its name."""
        found: list[list[int]] = [[] for _ in prompts]
        with as_it_is(self._student, self._accelerator):
            for numbers in _batches(prompts, limit, self._config.batch_tokens):
                sampler = Sampler(
                    self._config.temperature, self._config.top_p, self._seed, [names[number] for number in numbers]
                )

                def known(logits: Tensor, answers: Sequence[int], sampler: Sampler = sampler) -> Tensor:
                    return sampler(logits[:, : self._vocabulary], answers)  # the teacher has no other ids

                own = [prompts[number] for number in numbers]
                written = generate_plainly(self._student, own, limit, self._ends, known)
                for number, rollout in zip(numbers, written, strict=True):
                    found[number] = rollout
        return found

    def _over_processes(self, own: Counts) -> Counts:
        values = torch.tensor(own, dtype=torch.int64, device=self._accelerator.device)
        return Counts(*self._accelerator.reduce(values, reduction="sum").tolist())


def _batches(prompts: Sequence[Ids], limit: int, tokens: int) -> Iterator[list[int]]:
    """Numbers of prompts that are written from side by side, of similar length, whose caches hold so many tokens."""
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    while order:
        size = max(1, tokens // (len(prompts[order[0]]) + limit))
        yield order[:size]
        del order[:size]


def rows_of(prompts: Prompts, rollouts: Sequence[Sequence[int]]) -> Batch:
    """The rows in whose place each prompt stands with its rollout, of whose tokens each is a label; a row without a
    prompt has none."""
    found = list(zip(prompts.rows, prompts.ids, rollouts, strict=True))
    length = max((len(prompt) + len(rollout) for _, prompt, rollout in found), default=2)
    ids = np.zeros((len(prompts.batch), length), dtype=np.int64)
    labels = np.full((len(prompts.batch), length - 1), IGNORE_INDEX, dtype=np.int64)
    for row, prompt, rollout in found:
        end = len(prompt) + len(rollout)
        ids[row, :end] = [*prompt, *rollout]
        labels[row, len(prompt) - 1 : end - 1] = rollout
    return dataclasses.replace(prompts.batch, ids=ids, labels=labels, positions=None, weights=None)
