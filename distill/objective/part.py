"""What every part of an objective is: it asks for signals, and gives named terms and one loss of them."""

from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from compress.distill.objective.schedules import Setting
from compress.distill.objective.signals import Needs, Signals
from compress.distill.rows.batch import MicroBatch


class Pair(NamedTuple):
    """The two models that an objective is made for, by their configs: how many blocks they have, how wide they are."""

    student: Any
    teacher: Any | None
    kept: tuple[int, ...] | None = None
    """The teacher's layers that the student's blocks were; None where the student is no known cut."""
    others: tuple[Any, ...] = ()
    """The teachers beside the first one."""


class Outcome(NamedTuple):
    """What a part, or a whole objective, says of a micro-batch."""

    loss: Tensor
    """What is minimised, a scalar with its gradient: the weighted sum of the terms."""
    raw: Tensor
    """[K] the terms as they are defined, without weight and without gradient, float64, in the order of `names`."""


class Part(Protocol):
    """A loss of one or more terms that are made in one go."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of its terms."""

    @property
    def needs(self) -> Needs:
        """The signals that it asks for."""

    @property
    def learned(self) -> nn.Module | None:
        """What it learns beside the student, which a checkpoint keeps and the finished student does not have."""

    def __call__(
        self, student: Signals, teacher: Signals | None, batch: MicroBatch, num_tokens: float, setting: Setting
    ) -> Outcome:
        """Its loss and terms: sums over the micro-batch's labels, divided by `num_tokens`.

        The gradient is with respect to the student's signals and what is learned; the teacher's have none.
        """
