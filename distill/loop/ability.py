"""Scores of the student in training on a few items of a few tasks, in WORK/ability.jsonl, and of its teacher.

A file of them has a row for each task and time (see `compress.report.judge.ability`), with `test`, the hash of what is
asked: rows of another test, and of steps that are done again, are left out when it is written anew.
"""

import dataclasses
from pathlib import Path
from typing import Any, Protocol

from compress.base.currency import Inputs
from compress.base.disk import read_rows, sha256_json, write_rows
from compress.base.processes import on_main
from compress.base.progress import say, working
from compress.distill.resources.reading import as_it_is
from compress.distill.resources.schedule import is_due
from compress.report.judge.ability import falls, kept, mean_and_error

Row = dict[str, Any]


class AbilityTest(Protocol):
    """What scores models: `compress.evaluate.ability.AbilityTest`."""

    every: float
    """Steps from one time to the next, or a share of all steps."""
    kept: float | None
    """The share of the teacher's score above chance at which training ends."""

    @property
    def key(self) -> str:
        """What is asked, as a hash."""

    def of_folder(self, folder: Path, prefix: tuple[int, ...]) -> list[Row]:
        """Scores by task of a model in a folder, whose prompts begin with these tokens."""

    def of_model(self, model: Any, folder: Path, prefix: tuple[int, ...]) -> list[Row]:
        """Scores by task of a model in memory, whose tokenizer is in a folder."""


def until_of(test: AbilityTest | None) -> Inputs:
    """What a training that may end before its last step is made from besides, by role: when it ends."""
    if test is None or test.kept is None:
        return {}
    until = sha256_json({"kept": test.kept, "every": test.every, "test": test.key})
    return {"target at which it ends": lambda: until}


@dataclasses.dataclass(frozen=True)
class Ability:
    """The scores of one training. Every process of a launch asks for them; the main one writes."""

    test: AbilityTest
    work: Path
    student: Path
    """Where its tokenizer is."""
    prefix: tuple[int, ...]
    """What the rows that it learns from begin with."""

    @property
    def path(self) -> Path:
        """The file of scores."""
        return self.work / "ability.jsonl"

    def is_due(self, step: int, steps: int) -> bool:
        """Whether the student is scored after so many of its steps."""
        return step == 0 or is_due(self.test.every, step, steps)

    def rows(self, step: int | None = None) -> list[Row]:
        """Those of this test; with a step, of the teacher and of the student before that."""
        if not self.path.is_file():
            return []
        found = [row for row in read_rows(self.path, damaged="end") if row["test"] == self.test.key]
        return [row for row in found if step is None or row["of"] == "teacher" or row["step"] < step]

    def score_teacher(self, teacher: Path, prefix: tuple[int, ...]) -> None:
        """Score the teacher, whose prompts begin with these tokens, unless an earlier run has."""
        if any(row["of"] == "teacher" for row in on_main(self.rows)):
            return
        with working("scoring the teacher's abilities"):
            found = self.test.of_folder(teacher, prefix)
        on_main(lambda: write_rows(self.path, self._marked(found, of="teacher", step=None, tokens=None)))

    def score(self, model: Any, accelerator: Any, step: int, tokens: int) -> dict[str, float]:
        """Score the student as it is after a step, and write that down.

        Returns:
            Columns of metrics.jsonl: `score/TASK` and `score_stderr/TASK`.
        """
        with as_it_is(model, accelerator):
            found = self.test.of_model(model, self.student, self.prefix)
        rows = self._marked(found, of="student", step=step, tokens=tokens)
        on_main(lambda: write_rows(self.path, [*self.rows(step), *rows]))
        columns = {}
        for row in rows:
            columns[f"score/{row['task']}"], columns[f"score_stderr/{row['task']}"] = mean_and_error(row["items"])
        return columns

    def reached(self, step: int) -> bool:
        """Whether the student keeps what is asked for: the lower end of the 95% interval is at least that."""
        if self.test.kept is None:
            return False
        share = on_main(lambda: kept(self.rows(), step))
        if share.value is not None:
            told = "" if share.ci95 is None else f" (95% interval {share.ci95[0]:.1%} to {share.ci95[1]:.1%})"
            say(f"After step {step} the student keeps {share.value:.1%} of the teacher's score above chance{told}.")
        return share.ci95 is not None and share.ci95[0] >= self.test.kept

    def warn(self, heldout: list[Row], measure: str) -> None:
        """Say which abilities fell while the student came nearer to its teacher."""
        for fall in on_main(lambda: falls(self.rows(), heldout, measure)):
            say(str(fall))

    def _marked(self, rows: list[Row], **where: Any) -> list[Row]:
        return [{**where, "test": self.test.key, **row} for row in rows]
