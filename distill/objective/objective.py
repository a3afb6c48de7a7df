"""What is minimised: parts that ask for signals and give named terms, and one loss of them all.

Whoever trains, skips steps, logs, plans memory or draws curves takes the terms by name. A new term is a `Part` in a
file of its own, a line in `PARTS` and its name in `Weights`. What runs are compared by is no term: `measure` adds it,
whatever the options.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from compress.base.errors import UsageError
from compress.distill.config import DistillConfig
from compress.distill.objective.hidden import hidden_states
from compress.distill.objective.part import Outcome, Pair, Part
from compress.distill.objective.schedules import Setting, most, setting_at, weight_of
from compress.distill.objective.signals import Needs, Signals
from compress.distill.objective.similarity import similarity
from compress.distill.objective.soft_hard import Yardstick, soft_and_hard, yardstick
from compress.distill.rows.batch import MicroBatch

PARTS: dict[str, Callable[[DistillConfig, Pair], Part | None]] = {
    "soft_hard": soft_and_hard,
    "hidden": hidden_states,
    "similarity": similarity,
}
"""By name, what makes a part as the options ask; None where they ask for none of it."""


class Term(NamedTuple):
    """A named part of the loss over a batch: a scalar on the device, or a number."""

    raw: Any
    """As it is defined, e.g. in nats a token: what is logged."""
    weight: float

    @property
    def value(self) -> Any:
        """What it adds to the loss."""
        return self.weight * self.raw


Terms = Mapping[str, Term]


def loss_of(terms: Terms) -> Any:
    """The loss that terms add up to."""
    return functools.reduce(operator.add, (term.value for term in terms.values()))


@dataclasses.dataclass(frozen=True)
class Objective:
    """Parts that are minimised together, and the yardstick that runs are compared by."""

    config: DistillConfig
    parts: tuple[Part, ...]
    yardstick: Yardstick

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Of all terms."""
        return tuple(name for part in self.parts for name in part.names)

    @functools.cached_property
    def needs(self) -> Needs:
        """The signals that the parts ask for."""
        return functools.reduce(operator.or_, (part.needs for part in self.parts))

    @functools.cached_property
    def learned(self) -> nn.ModuleDict:
        """What is learned beside the student, by the parts' first terms."""
        found = {part.names[0]: part.learned for part in self.parts}
        return nn.ModuleDict({name: module for name, module in found.items() if module is not None})

    def at(self, done: float, levels: Mapping[str, float] | None = None) -> Setting:
        """What holds after the share `done` of the steps; see `setting_at`."""
        return setting_at(self.config, self.names, done, levels)

    def __call__(
        self, student: Signals, teacher: Signals | None, batch: MicroBatch, num_tokens: float, setting: Setting
    ) -> Outcome:
        """The loss of a micro-batch, sums divided by `num_tokens`; `raw` in the order of `names`."""
        return _together([part(student, teacher, batch, num_tokens, setting) for part in self.parts])

    def measure(
        self, student: Signals, teacher: Signals | None, batch: MicroBatch, num_tokens: float, setting: Setting
    ) -> Outcome:
        """The same, with the yardstick's values after the terms'.

        Where a part makes those anyway, there is no second pass over the logits.
        """
        outcomes = [part(student, teacher, batch, num_tokens, setting) for part in self.parts]
        same = (self.yardstick.measures_as(part, setting) for part in self.parts)
        alike = [out for found, out in zip(same, outcomes, strict=True) if found]
        plain = alike[0] if alike else self.yardstick(student, teacher, batch, num_tokens)
        out = _together(outcomes)
        return Outcome(out.loss, torch.cat([out.raw, plain.raw]))

    def terms(self, raw: Tensor, setting: Setting) -> dict[str, Term]:
        """Terms [K] by name."""
        return {name: Term(value, setting.weights[name]) for name, value in zip(self.names, raw.unbind(), strict=True)}

    def measured(self, values: list[float], setting: Setting) -> dict[str, float]:
        """What `measure` gave, by name: `loss`, the terms, `kl` where there is a teacher, and `hard`.

        A term of the same name is the same thing, but for rounding, and is taken.
        """
        terms, compared = values[: len(self.names)], values[len(self.names) :]
        found = dict(zip(self.names, terms, strict=True))
        loss = loss_of({name: Term(value, setting.weights[name]) for name, value in found.items()})
        return {"loss": loss, **dict(zip(self.yardstick.names, compared, strict=True)), **found}


def make_objective(config: DistillConfig, pair: Pair) -> Objective:
    """The objective that the options ask for.

    Raises:
        UsageError: a term that cannot be made of these models, or terms that all count nothing.
    """
    made = [make(config, pair) for make in PARTS.values()]
    objective = Objective(config, tuple(part for part in made if part is not None), yardstick(config, pair))
    if not any(most(weight_of(config, name)) > 0 for name in objective.names) and pair.teacher is not None:
        raise UsageError(f"All weights are 0 ({', '.join(objective.names)}), so nothing is learned; give one of them.")
    return objective


def _together(outcomes: list[Outcome]) -> Outcome:
    loss = functools.reduce(operator.add, (out.loss for out in outcomes))
    return Outcome(loss, torch.cat([out.raw for out in outcomes]))
