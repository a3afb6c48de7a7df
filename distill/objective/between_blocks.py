"""Terms between outputs of the student's blocks and of the teacher's: a mean over pairs of blocks, and over labels."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from compress.base.errors import UsageError
from compress.distill.objective.pairs import BlockPairs
from compress.distill.objective.part import Outcome, Pair
from compress.distill.objective.schedules import Setting
from compress.distill.objective.signals import Needs, Signals
from compress.distill.rows.batch import MicroBatch

Distance = Callable[[Tensor, Tensor, MicroBatch], Tensor]
"""Of a student's and a teacher's states [M, D] of the labels: the sum over labels, with its gradient."""


@dataclasses.dataclass(frozen=True)
class BetweenBlocks:
    """One term for some pairs of blocks; with `learned`, a projection of the student's states for each of them."""

    name: str
    pairs: BlockPairs
    distance: Distance
    learned: nn.ModuleList | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the term."""
        return (self.name,)

    @property
    def needs(self) -> Needs:
        """The outputs of the blocks in the pairs, whose gradient is left to autograd."""
        own, theirs = (tuple(sorted(set(blocks))) for blocks in zip(*self.pairs, strict=True))
        return Needs(student_blocks=own, teacher_blocks=theirs, autograd=True)

    def __call__(
        self, student: Signals, teacher: Signals | None, batch: MicroBatch, num_tokens: float, setting: Setting
    ) -> Outcome:
        """See `Part`."""
        assert teacher is not None
        sums = []
        for number, (own, theirs) in enumerate(self.pairs):
            hidden = student.blocks[own]
            if self.learned is not None:
                hidden = self.learned[number](hidden)
            sums.append(self.distance(hidden, teacher.blocks[theirs], batch))
        raw = torch.stack(sums).sum() / (len(self.pairs) * num_tokens)
        return Outcome(setting.weights[self.name] * raw, raw.detach()[None])


def times(gradient: Tensor | None, upstream: Tensor) -> Tensor | None:
    """A gradient that was made at once, by what comes from above it."""
    return None if gradient is None else gradient * upstream.to(gradient.dtype)


def require_teacher(term: str, pair: Pair) -> Any:
    """The teacher's config; raises UsageError where a term compares with a teacher that there is not."""
    if pair.teacher is None:
        raise UsageError(f"weights.{term} compares with a teacher, and there is none: name one, or leave it out.")
    return pair.teacher
