"""Names in a run folder: where each step leaves what it makes."""

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Layout:
    """The folder of a run, and what is where in it.

    recipe.yaml                          the recipe, resolved, every default written out
    world/ data/                         text (of the demo) and token store
    teacher-init/ teacher/ teacher-train/    a teacher from scratch, and its training
    student-init/ ranking/               the cut, and candidates that were healed to choose it
    student/ train/                      the healed student, and its training
    eval/NAME.json                       scores of a model, and speed.json of all
    report.json report.md report.html
    old/STEP-DATE/                       what `--redo STEP` moved aside; redo.json while one is under way
    """

    run: Path

    @property
    def recipe(self) -> Path:
        """recipe.yaml."""
        return self.run / "recipe.yaml"

    @property
    def world(self) -> Path:
        """The demo's text."""
        return self.run / "world"

    @property
    def data(self) -> Path:
        """The token store."""
        return self.run / "data"

    @property
    def student_init(self) -> Path:
        """The cut."""
        return self.run / "student-init"

    @property
    def ranking(self) -> Path:
        """Results of candidate cuts."""
        return self.run / "ranking"

    @property
    def student(self) -> Path:
        """The healed student."""
        return self.run / "student"

    @property
    def teacher(self) -> Path:
        """The teacher, where it is trained from scratch."""
        return self.run / "teacher"

    @property
    def teacher_init(self) -> Path:
        """Its random start."""
        return self.run / "teacher-init"

    def training(self, out: Path) -> Path:
        """Metrics and checkpoints of the training that makes `out`."""
        return self.run / ("train" if out == self.student else f"{out.name}-train")

    def evaluation(self, name: str) -> Path:
        """The eval JSON of a model of the run, or `speed` of all."""
        return self.run / "eval" / f"{name}.json"

    @property
    def old(self) -> Path:
        """What was moved aside."""
        return self.run / "old"

    @property
    def redo(self) -> Path:
        """The record of a redo that is under way."""
        return self.run / "redo.json"
