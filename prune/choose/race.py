"""Layers dropped greedily, one after another, each time the one whose loss is least; on no more text than that takes.

Each step is a race of the layers that are left. All are measured on an eighth of the rows, those that are plainly worse
than the best are given up, the others are measured on as many rows again, and so on until one is left or all rows are
read. All layers of a heat read the same tokens, so they are compared token by token: a layer is plainly worse when the
mean of its differences to the best is more than `MARGIN` standard errors. To win after all, it would have to be better
by that much on the rest of the text, and the rows that were read are an even sample of it.

A heat reads every token of few rows rather than some tokens of more: the blocks run on whole rows in any case.
"""

import dataclasses
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from compress.base.progress import Bar
from compress.prune.choose.ablation import Ablation
from compress.prune.choose.calibration import Calibration
from compress.prune.forecast import tell_time

MARGIN = 3.0
_HEATS = (slice(0, None, 8), slice(4, None, 8), slice(2, None, 4), slice(1, None, 2))
"""The rows that each heat adds: an eighth, an eighth, a quarter, a half, spread over the text."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GreedyStep:
    """A layer that was dropped, the loss without it and those dropped before it, nats a token, and what that cost."""

    dropped: int
    loss_nats: float
    tokens: int
    """Predicted tokens that the loss is the mean of."""
    heats: tuple[int, ...]
    """Layers that were measured, by heat."""


class Race:
    """The layers that may go next. Losses are by token, nats, float64."""

    def __init__(self, layers: Sequence[int]) -> None:
        self.base = torch.empty(0, dtype=torch.float64)
        """[T], with no more dropped."""
        self.without = dict.fromkeys(layers, self.base)
        """Without each layer, [t], on the first t of the T tokens."""
        self.heats: list[int] = []
        """Layers that were measured, by heat."""

    def increase(self, layer: int) -> float:
        """Loss without the layer less the loss with it."""
        losses = self.without[layer]
        return float((losses - self.base[: len(losses)]).mean())

    def add(self, base: Tensor, losses: Sequence[Tensor], layers: Sequence[int]) -> None:
        """Take in a heat."""
        self.base = torch.cat([self.base, base])
        for layer, found in zip(layers, losses, strict=True):
            self.without[layer] = torch.cat([self.without[layer], found])
        self.heats.append(len(layers))

    def best(self, layers: Sequence[int]) -> int:
        """That of the layers, measured on the same tokens, whose loss is least."""
        return min(layers, key=lambda layer: (float(self.without[layer].mean()), -layer))

    def running(self, layers: Sequence[int]) -> list[int]:
        """Those of the layers, measured on the same tokens, that are not plainly worse than the best of them."""
        best = self.without[self.best(layers)]
        return [layer for layer in layers if not _plainly_worse(self.without[layer] - best)]


class Search:
    """A greedy search for `count` layers to drop, never the last. Of equal losses the deeper layer goes."""

    def __init__(
        self, by: str, ablation: Ablation, text: Calibration, batch_tokens: int, count: int, num_layers: int
    ) -> None:
        self._by, self._ablation, self._text, self._batch_tokens = by, ablation, text, batch_tokens
        self._count, self._last = count, num_layers - 1
        self.trials = num_layers + sum(self._last - done for done in range(1, count))
        """Layers that enter its races. The last one enters the first, to be measured."""

    def run(self, bar: Bar) -> tuple[Race, list[GreedyStep]]:
        """The first race, and all steps; `bar` counts tokens, `trials` times the text in all."""
        races: list[Race] = []
        steps: list[GreedyStep] = []
        while not races or len(steps) < self._count:
            dropped = [step.dropped for step in steps]
            races.append(Race([layer for layer in range(self._last + (not steps)) if layer not in dropped]))
            best = self._winner(races[-1], dropped, bar)
            losses, heats = races[-1].without[best], tuple(races[-1].heats)
            steps.append(GreedyStep(dropped=best, loss_nats=float(losses.mean()), tokens=len(losses), heats=heats))
        return races[0], steps[: self._count]

    def _winner(self, race: Race, dropped: Sequence[int], bar: Bar) -> int:
        """The best layer, when it alone is left or all rows are read."""
        running, left, started = list(race.without), self._text.rows.size, time.monotonic()
        for heat in _HEATS:
            rows = self._text.rows[heat]
            if not len(rows) or len(running) == 1:
                continue
            batches = dataclasses.replace(self._text, rows=rows).batches(self._batch_tokens)
            race.add(*self._ablation.leave_one_out(batches, running, dropped, bar), running)
            if not dropped and len(race.heats) == 1:
                self._tell(time.monotonic() - started)
            left -= rows.size
            given_up = set(running) - set(race.running([layer for layer in running if layer != self._last]))
            bar.advance(len(given_up) * left)
            running = [layer for layer in running if layer not in given_up]
        bar.advance(left if len(running) == 1 else 0)
        return race.best(running)

    def _tell(self, first_heat_s: float) -> None:
        """Say about how long the whole takes: a race costs 2.5 first heats where each heat halves it."""
        seconds = first_heat_s * 2.5 * self.trials / (self._last + 1)
        tell_time(f"Measuring {self._by}", self._text, seconds, "--calibration-tokens")


def _plainly_worse(differences: Tensor) -> bool:
    """Whether the mean of differences [T] is above zero by more than chance makes it."""
    return bool(differences.mean() > MARGIN * differences.std() / len(differences) ** 0.5)
