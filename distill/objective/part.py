"""What every part of an objective is: it asks for signals, and gives named terms and one loss of them."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from compress.distill.objective.signals import Needs, Signals
from compress.distill.rows.batch import MicroBatch


class Pair(NamedTuple):
    """The configs of the two models that an objective is made for: how many blocks they have, how wide they are."""

    student: Any
    teacher: Any | None


class Outcome(NamedTuple):
    """What a part, or a whole objective, says of a micro-batch."""

    loss: Tensor
    """What is minimised, a scalar with its gradient: the weighted sum of the terms."""
    raw: Tensor
    """[K] the terms as they are defined, without weight and without gradient, float64, in the order of `weights`."""


class Part(Protocol):
    """A loss of one or more terms that are made in one go."""

    @property
    def weights(self) -> Mapping[str, float]:
        """The names of its terms, and what each counts in the loss."""

    @property
    def needs(self) -> Needs:
        """The signals that it asks for."""

    def __call__(self, student: Signals, teacher: Signals | None, batch: MicroBatch, num_tokens: float) -> Outcome:
        """Its loss and terms: sums over the micro-batch's labels, divided by `num_tokens`.

        The gradient is with respect to the student's signals; the teacher's have none.
        """
