"""Layers dropped greedily, one after another, each time the one whose loss is least; on no more text than that takes.
Or put back so, where the model begins without them.

Each step is a race of the layers that are left. All are measured on an eighth of the rows, those that are plainly worse
than the best are given up, the others are measured on as many rows again, and so on until one is left or all rows are
read. All layers of a heat read the same tokens, so they are compared token by token: a layer is plainly worse when the
mean of its differences to the best is more than `MARGIN` standard errors. To win after all, it would have to be better
by that much on the rest of the text, and the rows that were read are an even sample of it.

A heat reads every token of few rows rather than some tokens of more: the blocks run on whole rows in any case.
"""

import dataclasses
import time
from collections.abc import Collection, Iterator, Sequence

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
    """A layer that was dropped (or put back), the loss after it and those before it, nats a token, and its cost."""

    layer: int
    loss_nats: float
    tokens: int
    """Predicted tokens that the loss is the mean of."""
    heats: tuple[int, ...]
    """Layers that were measured, by heat."""


class Race:
    """The layers that may go next. Losses are by token, nats, float64."""

    def __init__(self, layers: Sequence[int]) -> None:
        self.base = torch.empty(0, dtype=torch.float64)
        """[T], with no more changed."""
        self.without = dict.fromkeys(layers, self.base)
        """Without each layer (or with it), [t], on the first t of the T tokens."""
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
    """A greedy search for `count` of the `layers` to drop, or to put back where the model begins without all of them.

    The `spared` ones are measured in the first race and never chosen. Of equal losses the deeper layer is.
    """

    def __init__(
        self,
        by: str,
        ablation: Ablation,
        text: Calibration,
        batch_tokens: int,
        count: int,
        layers: Sequence[int],
        *,
        spared: Collection[int] = (),
        put_back: bool = False,
    ) -> None:
        self._by, self._ablation, self._text, self._batch_tokens = by, ablation, text, batch_tokens
        self._count, self._layers, self._spared = count, layers, spared
        self._without = set(layers) if put_back else set[int]()
        self.trials = len(layers) + sum(len(layers) - len(spared) - done for done in range(1, count))
        """Layers that enter its races."""

    def run(self, bar: Bar) -> tuple[Race, list[GreedyStep]]:
        """The first race, and all steps; `bar` counts tokens, `trials` times the text in all."""
        races: list[Race] = []
        steps: list[GreedyStep] = []
        while not races or len(steps) < self._count:
            out = {step.layer for step in steps} | (set(self._spared) if steps else set())
            races.append(Race([layer for layer in self._layers if layer not in out]))
            best = self._winner(races[-1], [step.layer for step in steps], bar)
            losses, heats = races[-1].without[best], tuple(races[-1].heats)
            steps.append(GreedyStep(layer=best, loss_nats=float(losses.mean()), tokens=len(losses), heats=heats))
        return races[0], steps[: self._count]

    def _winner(self, race: Race, chosen: Sequence[int], bar: Bar) -> int:
        """The best layer, when it alone is left or all rows are read."""
        running, left, started = list(race.without), self._text.rows.size, time.monotonic()
        for heat in heats_of(self._text):
            if len(running) == 1 and race.heats:
                continue
            batches = heat.batches(self._batch_tokens)
            race.add(*self._ablation.change_one(batches, running, self._without ^ set(chosen), bar), running)
            if not chosen and len(race.heats) == 1:
                self._tell(time.monotonic() - started)
            left -= heat.rows.size
            given_up = set(running) - set(race.running([layer for layer in running if layer not in self._spared]))
            bar.advance(len(given_up) * left)
            running = [layer for layer in running if layer not in given_up]
        bar.advance(left if len(running) == 1 else 0)
        return race.best(running)

    def _tell(self, first_heat_s: float) -> None:
        """Say about how long the whole takes: a race costs 2.5 first heats where each heat halves it."""
        seconds = first_heat_s * 2.5 * self.trials / len(self._layers)
        tell_time(f"Measuring {self._by}", self._text, seconds, "--calibration-tokens")


def heats_of(text: Calibration) -> Iterator[Calibration]:
    """The text by heats, those that have a row."""
    for heat in _HEATS:
        if len(rows := text.rows[heat]):
            yield dataclasses.replace(text, rows=rows)


def _plainly_worse(differences: Tensor) -> bool:
    """Whether the mean of differences [T] is above zero by more than chance makes it."""
    return bool(differences.mean() > MARGIN * differences.std() / len(differences) ** 0.5)
