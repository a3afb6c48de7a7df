"""Names in a run folder: where each step leaves what it makes."""

from pathlib import Path

BRANCHES = "branches"


class Layout:
    """The folder of a run, and what is where in it."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.recipe = run / "recipe.yaml"
        """The recipe, every default written out."""
        self.world = run / "world"
        """The demo's text."""
        self.data = run / "data"
        """The token store."""
        self.trimmed = run / "teacher-trimmed"
        """The given teacher with a trimmed vocabulary."""
        self.teacher_init = run / "teacher-init"
        """Random start of a teacher from scratch."""
        self.teacher = run / "teacher"
        """That teacher, trained, or the given one, fine-tuned."""
        self.teacher_cache = run / "teacher-cache"
        """The teacher's signals on the token store."""
        self.student_init = run / "student-init"
        """The cut; of a chain the last stage's, where that cuts."""
        self.ranking = run / "ranking"
        """Results of candidate cuts."""
        self.student = run / "student"
        """The healed student."""
        self.grown = run / "grow"
        """Models of sizes between it and its teacher."""
        self.timing = run / "target.json"
        """How long models of two depths take, by which the target's speed-up is chosen for."""
        self.exported = run / "export"
        """The student in other formats."""
        self.old = run / "old"
        """What `--redo STEP` moved aside, in folders STEP-DATE."""
        self.redo = run / "redo.json"
        """What is being done anew, until that is finished."""

    def stage(self, number: int | None) -> "Layout":
        """Where a stage of a chain leaves its cut, training and student: RUN/stages/NUMBER, the last (None) in RUN."""
        return self if number is None else Layout(self.run / "stages" / str(number))

    def branch(self, number: int) -> "Layout":
        """Where a branch, trained on the source of that number alone, leaves its training and student."""
        return Layout(self.run / BRANCHES / str(number))

    def training(self, out: Path) -> Path:
        """Metrics and checkpoints of the training that makes `out`, beside it: train/, or teacher-train/."""
        return out.parent / ("train" if out.name == self.student.name else f"{out.name}-train")

    def evaluation(self, name: str) -> Path:
        """The eval JSON of a model of the run (teacher-before, teacher, student-init, branch-N, student, grown-N,
        export-FORMAT), or `speed` or `speed-export`."""
        return self.run / "eval" / f"{name}.json"
