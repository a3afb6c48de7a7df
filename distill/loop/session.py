"""What a training holds from before its first step on; `compress.distill.opening` makes it."""

import dataclasses
from typing import Any

from compress.distill.config import DistillConfig
from compress.distill.loop.ability import Ability
from compress.distill.loop.optimizer import StudentOptimizer
from compress.distill.loop.progress import Progress
from compress.distill.loop.step import Losses
from compress.distill.objective.objective import Objective
from compress.distill.objective.schedules import Setting
from compress.distill.resources.flops import PeakFlops
from compress.distill.resources.schedule import Budget
from compress.distill.rollouts.writing import Writer
from compress.distill.rows.batch import Batch
from compress.distill.rows.source import RowSource
from compress.distill.students.student import Student
from compress.distill.teachers.source import OpenedTeacher


@dataclasses.dataclass
class Session:
    """A run, ready for its first or next step."""

    config: DistillConfig
    inputs: dict[str, Any]
    """Hashes of what it is made from; see `compress.distill.asked.fingerprints`."""
    accelerator: Any
    student: Student
    model: Any
    """The student with its objective, as accelerate prepared it or split over the processes."""
    optimizer: StudentOptimizer
    objective: Objective
    guide: OpenedTeacher
    losses: Losses
    writer: Writer | None
    """Lets the student write in on-policy steps; None where there are none."""
    rows: RowSource
    heldout: Batch
    """Held-out rows to measure on."""
    measured: frozenset[int]
    """The steps after which that is done, beside the start."""
    budget: Budget
    flops_per_token: float
    peak: PeakFlops
    """Of one process's device."""
    progress: Progress
    ability: Ability | None
    """What it is scored on in between; None where it is not."""
    notes: dict[str, Any]
    """Fields of distill.json: what was decided for this machine, and the quantised teacher's KL."""
    outlook: str = ""
    """What the held-out measure is expected to be at the end, in words, for the progress line."""

    @property
    def tokens(self) -> int:
        """Tokens of the data read so far."""
        return self.progress.position * self.rows.seq_len

    @property
    def learned_tokens(self) -> int:
        """Tokens that went through the models to be learned from so far: those of the data or, in on-policy steps, of
        prompts and rollouts in place of the rows."""
        own = self.progress.rollouts
        return self.tokens + (0 if own is None else own.prompt_tokens + own.tokens - own.rows * self.rows.seq_len)

    def setting(self) -> Setting:
        """What the options say of the next step; after the last one, of that."""
        return self.objective.at(self.progress.step / self.budget.steps, self.progress.levels)
